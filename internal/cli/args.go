package cli

import "github.com/spf13/cobra"

// Args returns a check that a command is called with from least to most arguments,
// as its Use line names them.
func Args(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		hint := "Call it as: " + c.UseLine()
		if len(args) < least {
			return Usagef(hint, "An argument is missing.")
		}
		if len(args) > most {
			return Usagef(hint, "%q is one argument too many.", args[most])
		}
		return nil
	}
}
