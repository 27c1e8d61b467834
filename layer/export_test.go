package layer

// Windows keeps windows of checkpoints as tables do.
type Windows struct {
	p windowPacker
	u windowUnpacker
}

// Pack returns w as a table has it.
func (w *Windows) Pack(window []byte) []byte { return w.p.pack(window) }

// Unpack returns the window of n bytes that p was made of, until the next call.
func (w *Windows) Unpack(p []byte, n int) ([]byte, error) { return w.u.unpack(p, n) }
