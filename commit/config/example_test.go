package config_test

import (
	"fmt"
	"time"

	"github.com/laminafs/lamina/commit/config"
)

func ExampleApply() {
	base := `{"architecture":"amd64","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":[]}}`
	out, err := config.Apply([]byte(base), config.Edit{
		Instructions: []string{`ENV PATH=/app:$PATH`, `CMD ["app"]`},
		Created:      time.Unix(0, 0),
		CreatedBy:    "lamina commit",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(out))
	// Output:
	// {"architecture":"amd64","config":{"Env":["PATH=/app:/bin"],"Cmd":["app"]},"rootfs":{"type":"layers","diff_ids":[]},"history":[{"created":"1970-01-01T00:00:00Z","created_by":"lamina commit","empty_layer":true}],"created":"1970-01-01T00:00:00Z"}
}
