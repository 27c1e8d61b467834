package fetch_test

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMain fails when the tests leave goroutines behind.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	if z := flag.Lookup("test.fuzz"); z != nil && z.Value.String() != "" {
		os.Exit(code) // the fuzzing engine keeps some of its own
	}
	http.DefaultClient.CloseIdleConnections()
	for range 100 {
		if runtime.NumGoroutine() <= before {
			os.Exit(code)
		}
		time.Sleep(20 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	fmt.Fprintf(os.Stderr, "goroutines left behind: %d, were %d\n%s\n", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	os.Exit(1)
}
