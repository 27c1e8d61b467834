package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/laminafs/lamina/fetch"
)

// Way is how a blob came to be in a repository.
type Way uint8

// The ways.
const (
	Present Way = iota // it was there
	Mounted            // from another repository of the registry
	Sent
)

const (
	// tries is how often in a row a request may fail without the upload getting on.
	tries = 5
	// firstPause is the pause after the first failure; each next one is twice as long.
	firstPause = 250 * time.Millisecond
	// wrongTries is how often the registry may find the bytes of a blob wrong.
	wrongTries = 2
)

// Blob makes sure that the repository has the blob that desc describes, and says how it
// came there: from is where its bytes are, and origin, which may be nil, the repository
// they come from. progress, which may be nil, is told the bytes that the registry has
// taken; done may go back.
//
// Errors are those of package fetch, and of ctx: ErrDigest when from has other bytes
// than desc says, ErrDenied when the credentials do not suffice.
func (r *Registry) Blob(ctx context.Context, desc ocispec.Descriptor, from fetch.Blob, origin reference.Named, progress func(done, total int64)) (Way, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	way, err := r.blob(ctx, desc, from, origin, progress)
	if err != nil {
		return 0, fmt.Errorf("push blob %s: %w", desc.Digest, err)
	}
	progress(desc.Size, desc.Size)
	return way, nil
}

func (r *Registry) blob(ctx context.Context, desc ocispec.Descriptor, from fetch.Blob, origin reference.Named, progress func(done, total int64)) (Way, error) {
	there := false
	err := retry(ctx, func() (err error) {
		there, err = r.has(ctx, desc.Digest)
		return err
	})
	if there || err != nil {
		return Present, err
	}
	u := &upload{r: r, desc: desc, from: from, origin: r.near(origin), progress: progress}
	defer u.abandon(ctx)
	for wrong := 0; ; {
		err := u.run(ctx)
		if err == nil && u.mounted {
			return Mounted, nil
		}
		if !errors.Is(err, errWrong) {
			return Sent, err
		}
		u.reject(err)
		if wrong++; wrong == wrongTries {
			return Sent, fmt.Errorf("%w: %w", fetch.ErrDigest, err)
		}
	}
}

// near returns origin if a blob may be mounted from there.
func (r *Registry) near(origin reference.Named) reference.Named {
	if origin == nil || reference.Domain(origin) != reference.Domain(r.repo) || origin.Name() == r.repo.Name() {
		return nil
	}
	return origin
}

// errWrong: the registry says that the bytes do not have their digest.
var errWrong = errors.New("the registry finds other bytes than the digest says")

// upload is the session in which one blob is sent.
type upload struct {
	r        *Registry
	desc     ocispec.Descriptor
	from     fetch.Blob
	origin   reference.Named
	progress func(done, total int64)

	at      *url.URL // of the session; nil before it begins
	off     int64    // the registry has the bytes before it
	broken  bool     // the registry is to be asked how many it has
	ending  bool     // the registry was told that it has all
	mounted bool
	stream  fetch.Stream // the last one
}

// run sends the blob, going on where it was interrupted.
func (u *upload) run(ctx context.Context) error {
	failures := 0
	for {
		before := u.off
		err := u.step(ctx)
		if u.off > before {
			failures = 0
		}
		failures++
		if again, err := wait(ctx, err, failures); !again {
			return err
		}
	}
}

// step goes on from where the upload is to its end.
func (u *upload) step(ctx context.Context) error {
	if u.broken {
		u.ask(ctx)
	}
	if u.at == nil && u.ending {
		// The answer may have been lost that it is there.
		u.ending = false
		if there, err := u.r.has(ctx, u.desc.Digest); there || err != nil {
			return err
		}
	}
	if u.at == nil {
		if err := u.begin(ctx); err != nil || u.mounted {
			return err
		}
	}
	if u.off < u.desc.Size {
		if err := u.patch(ctx); err != nil {
			u.broken = true
			return err
		}
	}
	u.ending = true
	err := u.finish(ctx)
	if err != nil {
		u.broken = true
	}
	return err
}

// begin asks for the blob of another repository, once, and then for a session.
func (u *upload) begin(ctx context.Context) error {
	u.off, u.broken = 0, false
	if origin := u.origin; origin != nil {
		u.origin = nil
		err := u.post(ctx, url.Values{"mount": {u.desc.Digest.String()}, "from": {reference.Path(origin)}})
		// Who may not read there, by the registry's word, may send what he has.
		if !errors.Is(err, fetch.ErrDenied) && !errors.Is(err, fetch.ErrNotFound) {
			return err
		}
	}
	return u.post(ctx, nil)
}

// post begins a session, if the answer is not that the blob was mounted.
func (u *upload) post(ctx context.Context, query url.Values) error {
	resp, err := u.r.do(ctx, request{method: http.MethodPost, at: u.r.at("blobs/uploads/", query)}, http.StatusAccepted, http.StatusCreated)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusCreated {
		u.mounted = true
		return nil
	}
	return u.moved(resp)
}

// moved takes the session's address from an answer.
func (u *upload) moved(resp *http.Response) error {
	at, err := resp.Location()
	if err != nil {
		u.at = nil
		return fmt.Errorf("%w: the registry does not say where to send the blob: %w", fetch.ErrUnavailable, err)
	}
	u.at = at
	return nil
}

// patch sends what is missing. All in one request: not every registry takes a blob in
// parts, and of those some only in large ones.
func (u *upload) patch(ctx context.Context) error {
	off, n := u.off, u.desc.Size-u.off
	header := map[string]string{"Content-Type": "application/octet-stream"}
	if off > 0 {
		header["Content-Range"] = fmt.Sprintf("%d-%d", off, u.desc.Size-1)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stall, func() { cancel(errStalled) })
	defer stalled.Stop()
	var failed atomic.Pointer[error] // of reading the source
	resp, err := u.r.do(ctx, request{
		method: http.MethodPatch, at: u.at, header: header, length: n,
		body: func() (io.ReadCloser, error) {
			s, err := u.from.ReadRange(ctx, off, n)
			if err != nil {
				failed.Store(&err)
				return nil, err
			}
			u.stream = s
			return &meter{Stream: s, u: u, done: off, failed: &failed, stalled: stalled}, nil
		},
	}, http.StatusAccepted, http.StatusCreated, http.StatusNoContent)
	if cause := failed.Load(); cause != nil && err != nil && context.Cause(ctx) == nil {
		return &sourceError{*cause}
	}
	if err != nil {
		return err
	}
	u.off = u.desc.Size
	return u.moved(resp)
}

const (
	// stall is how long a registry may take no byte of a blob.
	stall = time.Minute
	// settle is how long it may take to answer when it has all of them.
	settle = 10 * time.Minute
)

var errStalled = fmt.Errorf("%w: the registry takes no more bytes", fetch.ErrUnavailable)

// ask finds out how much the registry has. A session that it does not know is over.
func (u *upload) ask(ctx context.Context) {
	if u.at == nil {
		return
	}
	resp, err := u.r.do(ctx, request{method: http.MethodGet, at: u.at}, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	var off int64
	if err == nil {
		off, err = received(resp.Header.Get("Range"))
	}
	if err != nil || off > u.desc.Size {
		u.abandon(ctx)
		return
	}
	u.off, u.broken = off, false
	if resp.Header.Get("Location") != "" {
		_ = u.moved(resp) // without it the address stays
	}
}

// received reads the header Range of an upload, "0-N" with the last byte's number. Of
// nothing some registries say 0-0, and some do not say anything.
func received(s string) (int64, error) {
	if s == "" || s == "0-0" {
		return 0, nil
	}
	first, last, ok := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	n, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || n < 0 {
		return 0, fmt.Errorf("%w: upload status %.40q", fetch.ErrUnavailable, s)
	}
	return n + 1, nil
}

// finish ends the session: the registry verifies what it has.
func (u *upload) finish(ctx context.Context) error {
	at := *u.at
	query := at.Query()
	query.Set("digest", u.desc.Digest.String())
	at.RawQuery = query.Encode()
	_, err := u.r.do(ctx, request{method: http.MethodPut, at: &at}, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	if err == nil {
		u.at = nil
	}
	var answer *fetch.Error
	if errors.As(err, &answer) && slices.Contains(answer.Codes, "DIGEST_INVALID") {
		return fmt.Errorf("%w: %w", errWrong, err)
	}
	return err
}

// reject tells the source that its bytes were wrong, and begins anew.
func (u *upload) reject(cause error) {
	if u.stream != nil {
		u.stream.Reject(cause)
	}
	u.at, u.off, u.ending = nil, 0, false
}

// abandon gives the session up, if there is one: what was sent takes room there.
func (u *upload) abandon(ctx context.Context) {
	if u.at == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = u.r.do(ctx, request{method: http.MethodDelete, at: u.at}, http.StatusNoContent)
	u.at, u.off, u.broken = nil, 0, false
}

// sourceError is an error of where bytes come from, which tries again by itself what
// is worth it.
type sourceError struct{ error }

func (e *sourceError) Unwrap() error { return e.error }

// meter counts what is read of a stream, which is about what the registry has taken.
type meter struct {
	fetch.Stream
	u       *upload
	done    int64
	failed  *atomic.Pointer[error]
	stalled *time.Timer
	closed  atomic.Bool // the transport may read on after it has answered
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Stream.Read(p)
	if err != nil && err != io.EOF {
		m.failed.Store(&err)
	}
	if m.done += int64(n); m.closed.Load() {
		return n, err
	}
	if m.done < m.u.desc.Size {
		m.stalled.Reset(stall)
	} else {
		m.stalled.Reset(settle)
	}
	m.u.progress(m.done, m.u.desc.Size)
	return n, err
}

func (m *meter) Close() error {
	m.closed.Store(true)
	return m.Stream.Close()
}

// passes reports whether it makes sense to try again after err, and when.
func passes(err error) (after time.Duration, ok bool) {
	var source *sourceError
	var answer *fetch.Error
	switch {
	case errors.As(err, &source):
		return 0, false
	case errors.As(err, &answer):
		if slices.ContainsFunc(answer.Codes, func(c string) bool { return slices.Contains(lost, c) }) {
			return 0, true
		}
		return answer.Passes()
	}
	return 0, errors.Is(err, fetch.ErrUnavailable)
}

// lost are the codes by which a registry says that it cannot go on with a session, and
// another one may be begun.
var lost = []string{"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID", "RANGE_INVALID"}

// retry calls do again while its error may pass.
func retry(ctx context.Context, do func() error) error {
	for failures := 1; ; failures++ {
		if again, err := wait(ctx, do(), failures); !again {
			return err
		}
	}
}

// wait waits before the next try after that many failures, of which err is the last.
// again is false when there is none to be, because of the error that it returns.
func wait(ctx context.Context, err error, failures int) (again bool, _ error) {
	if err == nil {
		return false, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	after, ok := passes(err)
	if !ok || failures >= tries {
		return false, err
	}
	t := time.NewTimer(max(after, firstPause<<(failures-1)))
	defer t.Stop()
	select {
	case <-t.C:
		return true, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
