package bench

// As in package xdpprog: clang 14, since the objects are compared byte for byte.

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" traffic bpf/traffic.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" tcNAT bpf/tcnat.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" xdpNAT bpf/xdpnat.c
