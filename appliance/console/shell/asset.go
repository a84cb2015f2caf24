package shell

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"strings"
	"sync"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/control"
)

var assetTypes = map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml", ".txt": "text/plain; charset=utf-8"}

// AssetAddress is where a page asks for a file: a browser keeps it as long as
// the content is the same.
func AssetAddress(name string, content []byte) string {
	sum := sha256.Sum256(content)
	return "/assets/" + name + "?" + hex.EncodeToString(sum[:6])
}

// PageAsset is the route of a file that pages of people who are signed in use:
// strangers have no need of it. Without content there is nothing there.
func PageAsset(name string, content []byte) Route {
	packed := sync.OnceValues(func() ([]byte, error) {
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(content); err != nil {
			return nil, err
		}
		err = w.Close()
		return b.Bytes(), err
	})
	return Route{
		Method: http.MethodGet, Path: "/assets/" + name, States: []control.State{control.StateReady}, Need: Full, Right: right.OwnAccount, Quiet: true,
		Handle: func(v *Visit) error {
			if content == nil {
				v.notFound()
				return nil
			}
			h := v.W.Header()
			h.Set("Content-Type", assetTypes[path.Ext(name)])
			h.Set("Cache-Control", "private, max-age=31536000, immutable")
			h.Set("Vary", "Accept-Encoding")
			b := content
			// It is the same for everyone and holds no secret, so its length tells nothing.
			if strings.Contains(v.R.Header.Get("Accept-Encoding"), "gzip") {
				var err error
				if b, err = packed(); err != nil {
					return fmt.Errorf("packing %s: %w", name, err)
				}
				h.Set("Content-Encoding", "gzip")
			}
			_, err := v.W.Write(b)
			return err
		},
	}
}
