package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/preflight"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

// buildInfo is what is known of the binary.
type buildInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Go       string `json:"goVersion"`
	Platform string `json:"platform"`
	// KernelFloor is the oldest kernel that will do.
	KernelFloor string `json:"kernelFloor"`
}

// thisBuild asks the linker first and the Go tool second.
func thisBuild() buildInfo {
	b := buildInfo{
		Version:     version,
		Revision:    "unknown",
		Go:          runtime.Version(),
		Platform:    runtime.GOOS + "/" + runtime.GOARCH,
		KernelFloor: fmt.Sprintf("%d.%d", preflight.KernelMajor, preflight.KernelMinor),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if b.Version == "" {
			b.Version = info.Main.Version
		}
		dirty := ""
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				b.Revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				dirty = "-dirty"
			}
		}
		if b.Revision != "unknown" {
			b.Revision += dirty
		}
	}
	if b.Version == "" {
		b.Version = "(devel)"
	}
	return b
}

func newVersion() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		RunE: func(c *cobra.Command, _ []string) error {
			return printVersion(c.OutOrStdout(), thisBuild(), output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printVersion(w io.Writer, b buildInfo, output string) error {
	switch output {
	case "text":
		_, err := fmt.Fprintf(w, "sluice %s (%s, %s)\nrevision %s\nneeds Linux %s or newer\n", b.Version, b.Go, b.Platform, b.Revision, b.KernelFloor)
		return err
	case "json":
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(b)
	}
	return usageError{fmt.Errorf("--output: want text or json, got %q", output)}
}
