package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// run runs a command with its output going to the builder's log; an error
// carries the last of that output.
func (b *builder) run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		tail := out.Bytes()
		tail = tail[max(0, len(tail)-4000):]
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, tail)
	}
	return nil
}

// aptSources returns the machine's own Debian sources as one-line entries, and
// the suite that is the first of them. Sources of others are left out: their
// packages would shadow Debian's.
func aptSources(ctx context.Context) (suite string, lines []string, err error) {
	for _, update := range []bool{false, true} {
		if update { // a machine whose package lists were deleted
			if out, err := exec.CommandContext(ctx, "apt-get", "-q", "update").CombinedOutput(); err != nil {
				return "", nil, fmt.Errorf("apt-get update: %w\n%s", err, out)
			}
		}
		out, err := exec.CommandContext(ctx, "apt-get", "indextargets",
			"--format", "$(SITE)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)",
			"Created-By: Packages", "Origin: Debian").Output()
		if err != nil {
			return "", nil, fmt.Errorf("apt-get indextargets: %w", err)
		}
		if suite, lines = parseTargets(string(out)); len(lines) > 0 {
			return suite, lines, nil
		}
	}
	return "", nil, fmt.Errorf("apt sources: no Debian source on this machine")
}

func parseTargets(out string) (suite string, lines []string) {
	seen := map[string]bool{}
	for l := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(l), "|")
		if len(f) != 4 || f[0] == "" {
			continue
		}
		by := ""
		if strings.HasPrefix(f[3], "/") {
			by = "[signed-by=" + f[3] + "] "
		}
		line := fmt.Sprintf("deb %s%s %s %s", by, f[0], f[1], f[2])
		if !seen[line] {
			seen[line] = true
			lines = append(lines, line)
		}
		// The shortest is the release itself; others are its -updates and so on.
		if suite == "" || len(f[1]) < len(suite) {
			suite = f[1]
		}
	}
	return suite, lines
}

// aptProxies returns the machine's apt proxy settings, if it has any.
func aptProxies(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return nil, fmt.Errorf("apt-config dump: %w", err)
	}
	var opts []string
	for l := range strings.Lines(string(out)) {
		l = strings.TrimSuffix(strings.TrimSpace(l), ";")
		if name, _, ok := strings.Cut(l, " "); ok && strings.HasPrefix(name, "Acquire::") &&
			strings.Contains(strings.ToLower(name), "proxy") && !strings.HasSuffix(l, ` ""`) {
			opts = append(opts, l)
		}
	}
	return opts, nil
}

// bootstrap makes the base's root filesystem.
func (b *builder) bootstrap(ctx context.Context, root string) error {
	suite, lines, err := aptSources(ctx)
	if err != nil {
		return err
	}
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--quiet"}
	for _, o := range b.proxies {
		args = append(args, "--aptopt="+o)
	}
	args = append(args, suite, root)
	if err := b.run(ctx, nil, "mmdebstrap", append(args, lines...)...); err != nil {
		return err
	}
	// These are the building machine's.
	for _, f := range []string{"etc/resolv.conf", "etc/hostname"} {
		if err := os.RemoveAll(filepath.Join(root, f)); err != nil {
			return err
		}
	}
	return nil
}

// installScript installs packages into an overlay, inside a mount namespace of
// its own, so that whatever happens nothing stays mounted. Package lists and
// downloads are on bind mounts and so never get into the layer.
const installScript = `
set -eu
work=$1; lower=$2; cache=$3; shift 3
mkdir -p "$work/upper" "$work/work" "$work/merged" "$cache/lists/partial" "$cache/archives/partial"
m=$work/merged
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$work/upper,workdir=$work/work,redirect_dir=off,metacopy=off,index=off" "$m"
mount -t proc proc "$m/proc"
mount --rbind /dev "$m/dev"
mount --bind "$cache/lists" "$m/var/lib/apt/lists"
mount --bind "$cache/archives" "$m/var/cache/apt/archives"
cp /etc/resolv.conf "$m/etc/resolv.conf.build"
touch "$m/etc/resolv.conf"
mount --bind "$m/etc/resolv.conf.build" "$m/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' >"$m/usr/sbin/policy-rc.d"
chmod +x "$m/usr/sbin/policy-rc.d"
cp "$cache/apt.conf" "$m/etc/apt/apt.conf.d/99build"
apt="chroot $m apt-get -q -y"
# The lists serve every layer; one made just now is not made again.
[ -e "$cache/updated" ] || { $apt update; : >"$cache/updated"; }
$apt install --no-install-recommends "$@"
umount "$m/etc/resolv.conf" "$m/var/cache/apt/archives" "$m/var/lib/apt/lists" "$m/proc"
rm -f "$m/etc/resolv.conf" "$m/etc/resolv.conf.build" "$m/usr/sbin/policy-rc.d" "$m/etc/apt/apt.conf.d/99build" \
	"$m"/var/cache/apt/*.bin
`

// install installs packages over lower and returns the directory of changes, in
// overlayfs's form.
func (b *builder) install(ctx context.Context, work, lower string, packages []string) (upper string, err error) {
	cache := filepath.Join(b.tmp, "apt")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	conf := strings.Join(append(b.proxies,
		`APT::Sandbox::User "root"`, `Acquire::Languages "none"`, `Binary::apt-get::APT::Keep-Downloaded-Packages "true"`,
		`Acquire::Retries "3"`, ""), ";\n")
	if err := os.WriteFile(filepath.Join(cache, "apt.conf"), []byte(conf), 0o644); err != nil {
		return "", err
	}
	args := append([]string{"--mount", "--propagation", "private", "sh", "-c", installScript, "install", work, lower, cache}, packages...)
	env := []string{"DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}
	return filepath.Join(work, "upper"), b.run(ctx, env, "unshare", args...)
}
