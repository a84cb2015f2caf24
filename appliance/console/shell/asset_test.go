package shell

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http/httptest"
	"testing"
)

func TestPageAssetIsThereOrNot(t *testing.T) {
	content := bytes.Repeat([]byte("let x = 1;\n"), 100)
	ask := func(r Route, accept string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", r.Path, nil)
		req.Header.Set("Accept-Encoding", accept)
		v := &Visit{W: w, R: req, Box: &Box{Name: "x"}, Route: r}
		if err := r.Handle(v); err != nil {
			t.Fatal(err)
		}
		return w
	}
	if w := ask(PageAsset("x.js", nil), ""); w.Code != 404 {
		t.Errorf("without content: %d", w.Code)
	}
	r := PageAsset("x.js", content)
	if err := r.check(); err != nil {
		t.Error(err)
	}
	if w := ask(r, "br"); w.Header().Get("Content-Encoding") != "" || !bytes.Equal(w.Body.Bytes(), content) || w.Header().Get("Content-Type") != "text/javascript; charset=utf-8" {
		t.Errorf("plain: %v", w.Header())
	}
	w := ask(r, "gzip, br")
	z, err := gzip.NewReader(w.Body)
	if err != nil || w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatalf("packed: %v, %v", w.Header(), err)
	}
	if b, err := io.ReadAll(z); err != nil || !bytes.Equal(b, content) {
		t.Errorf("packed, it is another: %v", err)
	}
	if AssetAddress("x.js", content) == AssetAddress("x.js", content[1:]) {
		t.Error("the address does not follow the content")
	}
}
