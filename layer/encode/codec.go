package encode

import (
	"fmt"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// gzipLevel is three times as fast as the default of compress/gzip, for 2.5%
	// of size; the next better level is a third slower.
	gzipLevel = 6
	// dictLen is how far back deflate can refer, in bytes.
	dictLen = 32 << 10
	// zstdWindow is how far back a frame can refer, in bytes. No frame has more
	// than that.
	zstdWindow = 4 << 20
	zstdLevel  = zstd.SpeedDefault
)

// codec compresses blocks. It is made for one at a time. What it makes of a block
// depends on that block alone.
type codec interface {
	// compress makes out and starts of the rest of b.
	compress(b *block) error
}

// appender is the io.Writer that appends to a block's out.
type appender struct{ b *block }

func (a appender) Write(p []byte) (int, error) {
	a.b.out = append(a.b.out, p...)
	return len(p), nil
}

// deflater makes a block a part of one deflate stream: it ends at a byte, and only
// the last is marked as the last.
type deflater struct{ z *flate.Writer }

func (d *deflater) compress(b *block) error {
	var err error
	if d.z == nil {
		d.z, err = flate.NewWriterDict(appender{b}, gzipLevel, b.dict)
		if err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	} else {
		d.z.ResetDict(appender{b}, b.dict)
	}
	if _, err = d.z.Write(b.in); err == nil {
		if b.last {
			err = d.z.Close()
		} else {
			err = d.z.Flush()
		}
	}
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	return nil
}

// framer compresses each frame of a block by itself.
type framer struct {
	frame func(b *block, src []byte) error
}

func (f *framer) compress(b *block) error {
	for i, at := range b.cuts {
		end := len(b.in)
		if i+1 < len(b.cuts) {
			end = b.cuts[i+1]
		}
		b.starts = append(b.starts, len(b.out))
		if err := f.frame(b, b.in[at:end]); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
	}
	return nil
}

// newMembers makes each frame a gzip member.
func newMembers() codec {
	var z *gzip.Writer
	return &framer{func(b *block, src []byte) error {
		if z == nil {
			var err error
			if z, err = gzip.NewWriterLevel(appender{b}, gzipLevel); err != nil {
				return err
			}
		} else {
			z.Reset(appender{b})
		}
		z.ModTime = time.Unix(0, 0) // means none; the zero Time would be written as a date
		if _, err := z.Write(src); err != nil {
			return err
		}
		return z.Close()
	}}
}

// newFrames makes each frame a zstd frame.
func newFrames() codec {
	var z *zstd.Encoder
	return &framer{func(b *block, src []byte) error {
		if z == nil {
			var err error
			z, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstdLevel),
				zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true), zstd.WithZeroFrames(true))
			if err != nil {
				return err
			}
		}
		b.out = z.EncodeAll(src, b.out)
		return nil
	}}
}
