// Package config edits the config of an image, the JSON document that says how
// its containers run and which layers it has, as `docker commit -c` does.
//
// The central function is [Apply], and [Edit] says what it changes: Dockerfile
// instructions, one more layer with its line of history, time and author. It
// takes bytes and gives bytes, reads no file and asks nobody.
//
// # Instructions
//
// CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL,
// USER, VOLUME and WORKDIR; all others need a build. BuildKit's packages parse
// them and expand variables, from the config's Env as it is before the
// instruction. What they do is what moby's builder does with them
// (daemon/builder/dockerfile/dispatchers.go):
//
//   - ENTRYPOINT drops Cmd, unless a CMD stands before it among the instructions.
//   - The shell form of both is given to Shell, or to /bin/sh -c.
//   - ENV replaces the first entry of that name in its place, LABEL the value of
//     the key; EXPOSE, VOLUME and ONBUILD add.
//   - WORKDIR continues the present one, if it is relative.
//   - HEALTHCHECK replaces all of the present one.
//
// Six things differ from `docker commit -c`, on purpose:
//
//   - Docker fills what the instructions left empty from the container's config:
//     CMD [] and ENTRYPOINT [] change nothing, and a HEALTHCHECK without interval
//     keeps the old interval. Here they do what they do in a Dockerfile.
//   - SHELL is allowed.
//   - A string holds one instruction and no more: what a shell put into a LABEL's
//     value cannot set USER.
//   - Names of variables and labels that are empty once expanded, and numbers that
//     are no signal of Linux, are refused.
//   - A list that became empty is left out, as in the OCI image specification,
//     where older versions of Docker write null or [].
//   - The author of the base stays if the edit names none, as with Docker's
//     containerd image store.
//
// # Invariants
//
//   - What is not edited stays: fields that nobody here knows, at every level,
//     their values byte by byte but for the white space between tokens, and the
//     order of keys. New keys come last.
//   - The same input gives the same bytes. Nothing depends on the machine or the
//     time of day.
//   - A base that readers could understand in two ways is refused: a key that
//     occurs twice, or in another case (env beside Env), as Docker's decoder takes
//     it for the same.
//
// Not promised: that the whole base is valid. What is neither read nor edited is
// not looked at. A history that is shorter than the list of layers is kept, as
// Docker tolerates it, and nothing is made up for the missing lines. Instructions
// for Windows images are refused.
package config
