package config

import (
	_ "crypto/sha256" // Digests of these algorithms can be checked.
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Sentinels on which callers decide. What else Apply returns is a mistake in the
// other fields of the Edit.
var (
	// ErrBase says that the base's config is malformed. The error names the field.
	ErrBase = errors.New("malformed base config")

	// ErrInstruction says that an instruction cannot be parsed or is not one that
	// changes a config. The error quotes it.
	ErrInstruction = errors.New("invalid instruction")
)

// Edit is what changes in a config. Its zero value adds an empty line to the
// history and removes the time.
type Edit struct {
	// Instructions are carried out in order. Each is one instruction of a
	// Dockerfile, such as `CMD ["a","b"]`; see the package's documentation.
	Instructions []string
	// Author is the image's and the history entry's. Empty: the image's stays and
	// the entry has none.
	Author string
	// Created is the time of the image and of the history entry, written in UTC.
	// Zero: neither has one.
	Created time.Time
	// CreatedBy and Comment are the history entry's.
	CreatedBy string
	Comment   string
	// DiffID is the digest of the new layer's uncompressed tar. Empty: there is
	// none, and the history entry says so.
	DiffID digest.Digest
	// Squash makes the new layer the only one. The history stays, and its entries
	// then say that they have no layer, as after docker build --squash.
	Squash bool
}

// Apply returns raw, the config of an image in the OCI format or in that of
// Docker's schema 2, with e carried out. It does not change raw.
//
// Errors: ErrBase, ErrInstruction.
func Apply(raw []byte, e Edit) ([]byte, error) {
	top, err := parseTop(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBase, err)
	}
	if err := editRun(top, e.Instructions); err != nil {
		return nil, err
	}
	if err := e.editLayers(top); err != nil {
		return nil, err
	}
	if e.Created.IsZero() {
		top.remove("created")
	} else if err := top.encode("created", e.Created.UTC()); err != nil {
		return nil, fmt.Errorf("created: %w", err)
	}
	if e.Author != "" {
		if err := top.encode("author", e.Author); err != nil {
			return nil, fmt.Errorf("author: %w", err)
		}
	}
	return top.bytes()
}

// parseTop parses the document as a whole, so that its parts can be parsed later
// without syntax errors.
func parseTop(raw []byte) (*object, error) {
	var doc json.RawMessage
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	top, err := parseObject("", doc)
	if err != nil {
		return nil, err
	}
	return top, top.exactly("os", "created", "author", "config", "rootfs", "history")
}

// editLayers changes rootfs and history, which must agree.
func (e *Edit) editLayers(top *object) error {
	if e.DiffID != "" {
		if err := e.DiffID.Validate(); err != nil {
			return fmt.Errorf("diff ID %.100q: %w", string(e.DiffID), err)
		}
	} else if e.Squash {
		return errors.New("squash: the new layer's diff ID is missing")
	}
	rootfs, layers, err := parseRootFS(top)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}
	history, err := parseHistory(top, len(layers), e.Squash)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBase, err)
	}

	if e.Squash {
		layers = nil
	}
	if e.DiffID != "" {
		id, err := encode(e.DiffID)
		if err != nil {
			return err
		}
		layers = append(layers, id)
	}
	if err := rootfs.encode("diff_ids", layers); err != nil {
		return err
	}
	if err := top.put("rootfs", rootfs); err != nil {
		return err
	}
	entry, err := e.historyEntry()
	if err != nil {
		return fmt.Errorf("history: %w", err)
	}
	return top.encode("history", append(history, entry))
}

func (e *Edit) historyEntry() (json.RawMessage, error) {
	h := ocispec.History{
		Author:     e.Author,
		CreatedBy:  e.CreatedBy,
		Comment:    e.Comment,
		EmptyLayer: e.DiffID == "",
	}
	for _, s := range []string{h.Author, h.CreatedBy, h.Comment} {
		if err := checkText(s); err != nil {
			return nil, err
		}
	}
	if !e.Created.IsZero() {
		t := e.Created.UTC()
		h.Created = &t
	}
	return encode(h)
}

func parseRootFS(top *object) (*object, list, error) {
	rootfs, err := top.object("rootfs")
	if err != nil {
		return nil, nil, err
	}
	if rootfs == nil {
		return nil, nil, errors.New("rootfs is missing")
	}
	if err := rootfs.exactly("type", "diff_ids"); err != nil {
		return nil, nil, err
	}
	kind, err := rootfs.text("type")
	if err != nil {
		return nil, nil, err
	}
	if kind != "layers" {
		return nil, nil, fmt.Errorf("rootfs.type is %.40q, and layers is the only one known", kind)
	}
	layers, err := rootfs.list("diff_ids")
	if err != nil {
		return nil, nil, err
	}
	ids, err := layers.texts("rootfs.diff_ids")
	if err != nil {
		return nil, nil, err
	}
	for i, id := range ids {
		err := digest.Digest(id).Validate()
		// What is of an unknown algorithm is not verified here anyway.
		if err != nil && !errors.Is(err, digest.ErrDigestUnsupported) {
			return nil, nil, fmt.Errorf("rootfs.diff_ids[%d] is %.100q: %w", i, id, err)
		}
	}
	if layers == nil {
		layers = list{}
	}
	return rootfs, layers, nil
}

// parseHistory returns the entries of the history, which may belong to so many
// layers at most: with more, Docker refuses the image. With squash they are
// changed to belong to none.
func parseHistory(top *object, layers int, squash bool) (list, error) {
	history, err := top.list("history")
	if err != nil {
		return nil, err
	}
	full := 0
	for i, raw := range history {
		path := fmt.Sprintf("history[%d]", i)
		h, err := parseObject(path, raw)
		if err != nil {
			return nil, err
		}
		if err := h.exactly("empty_layer"); err != nil {
			return nil, err
		}
		empty, err := h.flag("empty_layer")
		if err != nil {
			return nil, err
		}
		if empty {
			continue
		}
		full++
		if !squash {
			continue
		}
		if err := h.encode("empty_layer", true); err != nil {
			return nil, err
		}
		if history[i], err = h.bytes(); err != nil {
			return nil, err
		}
	}
	if full > layers {
		return nil, fmt.Errorf("history has entries for %d layers, and rootfs.diff_ids has %d", full, layers)
	}
	return history, nil
}
