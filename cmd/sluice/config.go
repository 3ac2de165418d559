package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluice-net/sluice/cmd/sluice/internal/config"
)

func newConfig() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Print or validate a configuration file",
	}
	c.AddCommand(&cobra.Command{
		Use:   "print-default",
		Short: "Print a configuration file with every field, its default and its meaning",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write(config.DefaultFile)
			return err
		},
	}, &cobra.Command{
		Use:   "validate FILE",
		Short: "Say what is wrong with a configuration file, one line for each thing",
		Args:  takes(1, "takes one FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			return validate(c, args[0])
		},
	})
	return c
}

// validate prints every problem but the last, which is left to be the error.
func validate(c *cobra.Command, file string) error {
	d := config.New()
	err := d.ReadFile(file)
	if err == nil {
		err = d.Check()
	}
	var problems config.Problems
	if !errors.As(err, &problems) {
		if err == nil {
			fmt.Fprintf(c.OutOrStdout(), "%s: good\n", file)
		}
		return err
	}
	last := len(problems) - 1
	for _, p := range problems[:last] {
		fmt.Fprintln(c.ErrOrStderr(), "sluice: "+p.String())
	}
	return errors.New(problems[last].String())
}
