package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/cocoonstack/epochfs/internal/demo"
)

func newDemoCmd(*globals) *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Demonstrate a mount, with a registry in this process",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			binary, err := os.Executable()
			if err != nil {
				return err
			}
			return demo.Run(cmd.Context(), demo.Options{
				Out: cmd.OutOrStdout(), Binary: binary, NoFUSE: exitNoFUSE, Keep: keep,
			})
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the registry and the mount until Ctrl-C")
	return cmd
}
