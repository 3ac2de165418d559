package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-net/sluice/cmd/sluice/internal/nearest"
)

// newRoot gives the command line. A new verb is one more AddCommand.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Serve Kubernetes ClusterIPs over XDP, AF_XDP and Go",
		Long: `Sluice serves the ClusterIPs of Kubernetes Services on this node: an XDP program
picks their packets out, a Go fast path translates them over AF_XDP, and the
kernel gets everything else untouched.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(newRun(), newServices(), newFlows(), newDemo(), newBench(), newConfig(), newCheck(), newCleanup(), newVersion())
	root.SetHelpCommand(newHelp(root))
	root.InitDefaultCompletionCmd(os.Args[1:]...)
	root.SetFlagErrorFunc(flagError)
	strict(root)
	return root
}

// strict makes every command refuse what it does not know, in one line. Of
// itself cobra lets a group of commands take any word for a cry for help.
func strict(c *cobra.Command) {
	if c.HasSubCommands() {
		c.Args = func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usageError{unknownCommand(c, args[0])}
		}
		if c.RunE == nil {
			c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
		}
		for _, sub := range c.Commands() {
			strict(sub)
		}
		return
	}
	args := c.Args
	if args == nil {
		args = takes(0, "takes no arguments")
	}
	c.Args = func(c *cobra.Command, given []string) error {
		if err := args(c, given); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// takes allows exactly n arguments, and says so in its own words otherwise.
func takes(n int, words string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		got := "none"
		if len(args) > 0 {
			got = strings.Join(args, " ")
		}
		verb := strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
		return fmt.Errorf("%s %s, got %s; `%s --help` tells more", verb, words, got, c.CommandPath())
	}
}

// unknownCommand names the nearest verb, or where to find them.
func unknownCommand(c *cobra.Command, word string) error {
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if near := nearest.Word(word, names); near != "" {
		return fmt.Errorf("unknown command %q; did you mean `%s %s`?", word, c.CommandPath(), near)
	}
	return fmt.Errorf("unknown command %q; there are %s", word, strings.Join(names, ", "))
}

// flagError names the nearest flag, or where to find them.
func flagError(c *cobra.Command, err error) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "unknown flag: --"); ok {
		var names []string
		c.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest.Word(name, names); near != "" {
			return usageError{fmt.Errorf("unknown flag --%s; did you mean --%s?", name, near)}
		}
		text = "unknown flag --" + name
	}
	// What strconv says of a number or a truth value adds nothing.
	text, _, _ = strings.Cut(text, ": strconv.")
	return usageError{fmt.Errorf("%s; `%s --help` lists the flags", text, c.CommandPath())}
}

// newHelp is cobra's help command, but for a word it does not know.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [command]",
		Short: "Tell about a command",
		Args:  cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			c, rest, err := root.Find(args)
			if err != nil || c == nil {
				return usageError{unknownCommand(root, args[0])}
			}
			if len(rest) > 0 {
				return usageError{unknownCommand(c, rest[0])}
			}
			c.InitDefaultHelpFlag()
			return c.Help()
		},
	}
}
