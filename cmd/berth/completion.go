package main

import (
	"io"

	"github.com/spf13/cobra"
)

// bashWords stands in for the one function that the script for bash takes from the
// package bash-completion, where that is not installed, as on a Mac. The line is
// split at blanks alone, which is what the script asks of the original.
const bashWords = `# berth's completion for bash
if ! declare -F _get_comp_words_by_ref >/dev/null && ! declare -F _init_completion >/dev/null; then
    _get_comp_words_by_ref()
    {
        local line=${COMP_LINE:0:COMP_POINT}
        read -ra words <<<"$line"
        [[ $line == *[[:space:]] ]] && words+=("")
        cword=$((${#words[@]} - 1))
        cur=${words[cword]}
        prev=${words[cword - 1]}
    }
fi

`

// completionCommand prints the scripts by which shells complete berth's commands.
func (a *app) completionCommand(root *cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use:   "completion",
		Short: "Print a shell's completion script",
		Long: `Print the script by which a shell completes berth's and docker's commands, and the
names of machines, containers and images. Berth's packages install it.`,
		Example: `  source <(berth completion bash)                          # in ~/.bashrc
  source <(berth completion zsh)                           # in ~/.zshrc, after compinit
  berth completion fish >~/.config/fish/completions/berth.fish
  berth completion powershell | Out-String | Invoke-Expression   # in $PROFILE`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for shell, write := range map[string]func(io.Writer) error{
		"bash": func(w io.Writer) error {
			if _, err := io.WriteString(w, bashWords); err != nil {
				return err
			}
			return root.GenBashCompletionV2(w, true)
		},
		"zsh":        root.GenZshCompletion,
		"fish":       func(w io.Writer) error { return root.GenFishCompletion(w, true) },
		"powershell": root.GenPowerShellCompletionWithDesc,
	} {
		c.AddCommand(&cobra.Command{
			Use:   shell,
			Short: "Print the completion script for " + shell,
			Args:  noArgs,
			RunE:  func(*cobra.Command, []string) error { return write(a.out) },
		})
	}
	return c
}
