package fs

import (
	"bufio"
	"os"
	"slices"
	"strconv"
	"strings"
)

// credentials are those of a thread that matter to files.
type credentials struct {
	capabilities uint64
	uid          uint32 // nobody's if it is unknown
	groups       []uint32
}

// nobody is no user's ID.
const nobody = 1<<32 - 1

// credentialsOf returns those of thread tid; one that cannot be seen has none.
func credentialsOf(tid uint32) credentials {
	c := credentials{uid: nobody}
	_ = threadStatus(tid, func(key, value string) bool {
		fields := strings.Fields(value)
		switch {
		case key == "Uid" && len(fields) == 4: // the last of each is that for filesystems
			if uid, err := strconv.ParseUint(fields[3], 10, 32); err == nil {
				c.uid = uint32(uid)
			}
		case key == "Gid" && len(fields) == 4:
			c.addGroups(fields[3:])
		case key == "Groups":
			c.addGroups(fields)
		case key == "CapEff":
			c.capabilities, _ = strconv.ParseUint(value, 16, 64)
			return false
		}
		return true
	})
	return c
}

func (c *credentials) addGroups(fields []string) {
	for _, f := range fields {
		if gid, err := strconv.ParseUint(f, 10, 32); err == nil {
			c.groups = append(c.groups, uint32(gid))
		}
	}
}

func (c credentials) has(capability uint) bool { return c.capabilities&(1<<capability) != 0 }

func (c credentials) in(gid uint32) bool { return slices.Contains(c.groups, gid) }

// threadStatus calls fn with the lines of the status of thread tid until it returns
// false.
func threadStatus(tid uint32, fn func(key, value string) bool) error {
	f, err := os.Open("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if !fn(key, strings.TrimSpace(value)) {
			break
		}
	}
	return nil
}
