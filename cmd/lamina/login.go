package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/distribution/reference"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/laminafs/lamina/fetch"
)

func loginCommand() *cli.Command {
	return &cli.Command{
		Name: "login", Usage: "keep a user name and password for a registry", ArgsUsage: "[REGISTRY]",
		Description: `Asks the registry, Docker Hub if none is named, whether it takes them, and keeps them
where docker does: in the credential helper that docker's config.json names, or in
that file. docker, podman, skopeo and lamina read them there.`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "the user's `NAME`"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
		}, networkFlags()...),
		Before: takes(0, 1, "the host of a registry, such as ghcr.io"),
		Action: runLogin,
	}
}

func logoutCommand() *cli.Command {
	return &cli.Command{
		Name: "logout", Usage: "forget the user name and password of a registry", ArgsUsage: "[REGISTRY]",
		Before: takes(0, 1, "the host of a registry, such as ghcr.io"),
		Action: func(c *cli.Context) error {
			domain, err := registryArg(c)
			if err != nil {
				return err
			}
			if err := fetch.RemoveCredentials(domain); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "logged out of %s\n", domain)
			return err
		},
	}
}

// registryArg returns the registry that the argument names.
func registryArg(c *cli.Context) (string, error) {
	arg := c.Args().First()
	if arg == "" {
		return "docker.io", nil
	}
	host := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(arg, "https://"), "http://"), "/")
	ref, err := reference.ParseNormalizedNamed(host + "/any")
	if err != nil || reference.Domain(ref) != host {
		return "", usagef(c, "%q is not the host of a registry: write one such as ghcr.io or localhost:5000", arg)
	}
	return host, nil
}

func runLogin(c *cli.Context) error {
	domain, err := registryArg(c)
	if err != nil {
		return err
	}
	hosts, err := hostsDirs(c)
	if err != nil {
		return err
	}
	user, password, err := askCredentials(c)
	if err != nil {
		return err
	}
	client := fetch.New(fetch.Options{
		HostsDirs: hosts, PlainHTTP: c.Bool("plain-http"), Insecure: c.Bool("insecure"),
		Keychain: fetch.Credentials(user, password),
	})
	defer client.Close()
	if err := client.Login(c.Context, domain); err != nil {
		return err
	}
	where, err := fetch.SaveCredentials(domain, user, password)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "logged in to %s as %s; kept in %s\n", domain, user, where)
	return err
}

// askCredentials returns the user name and password: from the flags and standard input,
// or asked for on the terminal.
func askCredentials(c *cli.Context) (user, password string, err error) {
	user = c.String("username")
	if c.Bool("password-stdin") {
		if user == "" {
			return "", "", usagef(c, "--password-stdin needs --username")
		}
		b, err := io.ReadAll(io.LimitReader(os.Stdin, maxPassword+1))
		if err != nil {
			return "", "", fmt.Errorf("read the password from standard input: %w", err)
		}
		password = strings.TrimRight(string(b), "\r\n")
		if password == "" || len(b) > maxPassword {
			return "", "", fmt.Errorf("standard input holds no password, or more than %d bytes", maxPassword)
		}
		return user, password, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return "", "", usagef(c, "there is no terminal to ask for the password: write --username NAME --password-stdin")
	}
	if user == "" {
		fmt.Fprint(os.Stderr, "Username: ")
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return "", "", fmt.Errorf("read the user name: %w", err)
		}
		user = strings.TrimSpace(line)
	}
	fmt.Fprint(os.Stderr, "Password: ")
	b, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	if err != nil {
		return "", "", fmt.Errorf("read the password: %w", err)
	}
	if user == "" || len(b) == 0 {
		return "", "", errors.New("no user name, or no password")
	}
	return user, string(b), nil
}

// maxPassword is more than any registry's tokens have, in bytes.
const maxPassword = 64 << 10
