package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/mount"
	"github.com/laminafs/lamina/store"
)

// completionWord is what a shell puts last to ask what may come there.
const completionWord = "--generate-bash-completion"

const bashCompletion = `# bash completion for lamina: source <(lamina completion bash)
_lamina() {
	local cur words cword
	COMPREPLY=()
	if declare -F _get_comp_words_by_ref >/dev/null; then
		_get_comp_words_by_ref -n "=:" cur words cword
	else
		cur=${COMP_WORDS[COMP_CWORD]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
	fi
	local ask=("${words[@]:0:$cword}")
	[[ $cur == -* ]] && ask+=("$cur")
	mapfile -t COMPREPLY < <(compgen -W "$("${ask[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
	declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "$cur"
	return 0
}
complete -o bashdefault -o default -F _lamina lamina
`

const zshCompletion = `#compdef lamina
# zsh completion for lamina: source <(lamina completion zsh)
_lamina() {
	local -a opts ask
	ask=("${(@)words[1,CURRENT-1]}")
	[[ ${words[CURRENT]} == -* ]] && ask+=("${words[CURRENT]}")
	opts=("${(@f)$("${ask[@]}" --generate-bash-completion 2>/dev/null)}")
	if [[ -n ${opts[1]} ]]; then
		compadd -- "${opts[@]%%:[A-Za-z]* *}"
	else
		_files
	fi
}
compdef _lamina lamina
`

// fishNames completes words that are no flags; flags and commands come from the
// library.
const fishNames = `
complete -c lamina -n '__fish_seen_subcommand_from %s' -a '(eval (commandline -opc) --generate-bash-completion 2>/dev/null)'
`

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a script that completes words in a shell", ArgsUsage: "bash|zsh|fish",
		Description: `bash:  source <(lamina completion bash)
zsh:   source <(lamina completion zsh)
fish:  lamina completion fish | source`,
		BashComplete: func(c *cli.Context) { _, _ = fmt.Fprintln(c.App.Writer, "bash\nzsh\nfish") },
		Before:       takes(1, 1, "bash, zsh or fish"),
		Action: func(c *cli.Context) error {
			var script string
			switch c.Args().First() {
			case "bash":
				script = bashCompletion
			case "zsh":
				script = zshCompletion
			case "fish":
				s, err := c.App.ToFishCompletion()
				if err != nil {
					return fmt.Errorf("completion for fish: %w", err)
				}
				var named []string
				for _, cmd := range c.App.Commands {
					if cmd.BashComplete != nil {
						named = append(named, cmd.Name)
					}
				}
				script = s + fmt.Sprintf(fishNames, strings.Join(named, " "))
			default:
				return usagef(c, "completion takes bash, zsh or fish")
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page, for man(1)",
		Description: "lamina man | man -l -",
		ArgsUsage:   " ",
		Before:      takes(0, 0, "no arguments"),
		Action: func(c *cli.Context) error {
			page, err := c.App.ToManWithSection(8)
			if err != nil {
				return fmt.Errorf("manual page: %w", err)
			}
			_, err = fmt.Fprint(c.App.Writer, page)
			return err
		},
	}
}

// flagsOr completes flags where one was begun, and names elsewhere. A flag that was
// begun is none that could be parsed: it is looked for where the library does.
func flagsOr(c *cli.Context, names func(*cli.Context)) {
	if n := len(os.Args); n > 2 && strings.HasPrefix(os.Args[n-2], "-") {
		cli.DefaultCompleteWithFlags(c.Command)(c)
		return
	}
	names(c)
}

// completeImages prints the names of the images that are kept.
func completeImages(c *cli.Context) {
	flagsOr(c, func(c *cli.Context) {
		_ = withStore(c, func(s *store.Store) error {
			all, err := s.Images.List()
			seen := map[string]bool{}
			for _, e := range all {
				if !seen[e.Name] {
					seen[e.Name] = true
					_, _ = fmt.Fprintln(c.App.Writer, e.Name)
				}
			}
			return err // nobody to tell: there is nothing to complete
		})
	})
}

// completeMounts prints the names of mounts, and where they are.
func completeMounts(c *cli.Context) {
	flagsOr(c, func(c *cli.Context) {
		r, err := root(c)
		if err != nil {
			return
		}
		all, err := mount.List(r)
		if err != nil {
			return
		}
		for _, m := range all {
			_, _ = fmt.Fprintln(c.App.Writer, m.Name)
			_, _ = fmt.Fprintln(c.App.Writer, m.Options.Dir)
		}
	})
}
