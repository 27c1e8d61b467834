package fetch_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/laminafs/lamina/fetch"
)

// TestStatsKeys: JSON keys are spelt as elsewhere.
func TestStatsKeys(t *testing.T) {
	b, err := json.Marshal(fetch.Stats{Hosts: map[string]fetch.HostStats{"h": {IgnoresRanges: true}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"rttNs", "bandwidthBytesPerSecond", "ignoresRanges"} {
		if !strings.Contains(string(b), `"`+key+`":`) {
			t.Errorf("no %s in %s", key, b)
		}
	}
	if strings.Contains(string(b), "_") {
		t.Errorf("%s", b)
	}
}
