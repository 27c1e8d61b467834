// Package lamina is the root of a program that mounts container images; it
// holds no code. The command is in cmd/lamina. Imports go one way:
//
//	cmd/lamina -> mount -> {fs -> overlay -> cache -> layer -> {index, fetch}, image -> fetch}
//
// docs/design.md says what each package is for and why. A test beside this
// file checks the arrows.
package lamina
