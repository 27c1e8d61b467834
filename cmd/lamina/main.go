// Command lamina mounts container images.
//
// The program parses its arguments, calls the packages that do the work, and prints
// what they return. Exit status: 0 done; 1 failed, with one line on standard error;
// 2 the arguments made no sense; 130 interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/laminafs/lamina/image"
)

// version is set by the linker for releases.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args)
	stop()
	os.Exit(code)
}

// run is main with an exit status: the only place that chooses one.
func run(ctx context.Context, args []string) int {
	app := newApp()
	err := app.RunContext(ctx, intersperse(app, args))
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "lamina: interrupted; what was fetched is kept")
		return 130
	}
	fmt.Fprintln(os.Stderr, "lamina:", oneLine(err.Error()))
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(os.Stderr, "Try 'lamina %s--help'.\n", usage.command)
		return 2
	}
	// These say themselves what to write, and no help would say more.
	if errors.Is(err, image.ErrName) || errors.Is(err, image.ErrBadPlatform) {
		return 2
	}
	return 1
}

// usageError is an error of the arguments given to a command.
type usageError struct {
	command string // the command's name and a blank; empty for the program
	err     error
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(c *cli.Context, format string, args ...any) error {
	e := &usageError{err: fmt.Errorf(format, args...)}
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != c.App.Name {
		e.command = c.Command.Name + " "
	}
	return e
}

func newApp() *cli.App {
	app := &cli.App{
		Name:  "lamina",
		Usage: "mount container images, fetching only what is read",
		Description: `Exit status: 0 done; 1 failed, with one line on standard error; 2 the arguments
made no sense; 130 interrupted.`,
		Version:              version,
		HideHelpCommand:      true,
		EnableBashCompletion: true,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name: "root", EnvVars: []string{"LAMINA_ROOT"}, Value: defaultRoot(),
				Usage: "keep images, layers and mounts in `DIR`",
			},
			&cli.StringFlag{
				Name: "cache-limit", EnvVars: []string{"LAMINA_CACHE_LIMIT"},
				Usage: "keep at most `SIZE` of layer data, as 20G",
			},
		},
		Commands: []*cli.Command{
			mountCommand(), umountCommand(), commitCommand(), mountsCommand(), statsCommand(),
			lsCommand(), catCommand(), cpCommand(), findFilesCommand(), diffCommand(), whichCommand(), layersCommand(),
			pullCommand(), pushCommand(), saveCommand(), loadCommand(), importCommand(), exportCommand(), loginCommand(), logoutCommand(), imagesCommand(), inspectCommand(), historyCommand(), tagCommand(), rmiCommand(),
			indexCommand(), dfCommand(), pruneCommand(), checkCommand(),
			completionCommand(), manCommand(), serveCommand(), holdCommand(),
		},
		OnUsageError: func(c *cli.Context, err error, _ bool) error { return usagef(c, "%w", err) },
		Action: func(c *cli.Context) error {
			switch {
			case c.NArg() == 0 || c.NArg() == 1 && c.Args().First() == "help":
				return cli.ShowAppHelp(c)
			case c.NArg() == 2 && c.Args().First() == "help" && c.App.Command(c.Args().Get(1)) != nil:
				return c.App.RunContext(c.Context, []string{c.App.Name, c.Args().Get(1), "--help"})
			}
			return usagef(c, "no command %q", c.Args().First())
		},
		// Errors are printed by run, once.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	for _, c := range app.Commands {
		c.OnUsageError = app.OnUsageError
		c.HideHelpCommand = true
		for _, f := range c.Flags {
			if b, ok := f.(*cli.BoolFlag); ok {
				b.DisableDefaultText = true
			}
		}
	}
	return app
}

// defaultRoot is where the store lies: the system's place for root, and the
// user's data directory for everybody else.
func defaultRoot() string {
	if os.Geteuid() == 0 {
		return "/var/lib/lamina"
	}
	if d := os.Getenv("XDG_DATA_HOME"); d != "" {
		return filepath.Join(d, "lamina")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".local", "share", "lamina")
}

// root returns the store's directory as an absolute path.
func root(c *cli.Context) (string, error) {
	r := c.String("root")
	if r == "" {
		return "", usagef(c, "no home directory to keep images in: give --root DIR or set LAMINA_ROOT")
	}
	return filepath.Abs(r)
}
