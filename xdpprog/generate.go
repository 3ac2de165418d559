package xdpprog

// clang 14 is pinned, since the objects are compared byte for byte. The
// processor level v3 (32-bit registers and jumps) is older than the oldest
// kernel that we run on.

//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" xdp bpf/xdp.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" egress bpf/egress.c
//go:generate go tool bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -tags linux -no-global-types -cflags "-O2 -Wall -Wextra -Werror -mcpu=v3 -nostdinc" steer bpf/steer.c
