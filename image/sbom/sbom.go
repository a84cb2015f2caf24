// Package sbom writes what an image is made of as an SPDX 2.3 document (spdx.github.io/spdx-spec), the same bytes each time.
//
// A part is known by its package URL (purl). Licences are read from the texts
// that come with a part, and are NOASSERTION where no rule here recognises them.
package sbom

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

const unknown = "NOASSERTION"

// A Part is something that is in the image.
type Part struct {
	URL     string // package URL: what and which version
	Name    string
	Version string
	Licence string // SPDX expression; "": not known
	Remark  string // on where the licence is from, or which it is in other words
	File    string // by which it is handed out
	SHA256  string // of that file, in hex
	Source  string // where that file is had
	Comment string
}

// A Document is about one release.
type Document struct {
	Name    string // gatehouse-1.5.0
	Version string
	Created time.Time
	Tool    string // which makes the document, with its version
	Parts   []Part
}

type (
	document struct {
		Version       string         `json:"spdxVersion"`
		License       string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []part         `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	part struct {
		ID        string     `json:"SPDXID"`
		Name      string     `json:"name"`
		Version   string     `json:"versionInfo"`
		File      string     `json:"packageFileName,omitempty"`
		Source    string     `json:"downloadLocation"`
		Analyzed  bool       `json:"filesAnalyzed"`
		Checksums []checksum `json:"checksums,omitempty"`
		Concluded string     `json:"licenseConcluded"`
		Declared  string     `json:"licenseDeclared"`
		Remark    string     `json:"licenseComments,omitempty"`
		Copyright string     `json:"copyrightText"`
		Comment   string     `json:"comment,omitempty"`
		Refs      []ref      `json:"externalRefs,omitempty"`
	}
	checksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	ref struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Kind string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// JSON writes the document. Its namespace, which has to be unlike any other's,
// follows from all that is in it.
func (d Document) JSON() ([]byte, error) {
	whole := document{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: d.Name,
		Creation: creation{d.Created.UTC().Format(time.RFC3339), []string{"Tool: " + d.Tool}},
	}
	top := Part{Name: "gatehouse", Version: d.Version}
	whole.add(top, "SPDXRef-gatehouse")
	whole.relate("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-gatehouse")
	parts := slices.SortedFunc(slices.Values(d.Parts), func(a, b Part) int { return strings.Compare(a.URL, b.URL) })
	seen := make(map[string]string)
	for _, p := range parts {
		id := identifier(p.URL)
		if other, twice := seen[id]; twice {
			if other == p.URL {
				continue // of two architectures
			}
			return nil, fmt.Errorf("writing what the image is made of: %s and %s would have one name", other, p.URL)
		}
		seen[id] = p.URL
		whole.add(p, id)
		whole.relate("SPDXRef-gatehouse", "CONTAINS", id)
	}
	b, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	id := uuid.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80 // RFC 9562, 5.8: an identifier of our own making
	id[8] = id[8]&0x3f | 0x80
	whole.Namespace = "urn:uuid:" + id.String()
	b, err = json.MarshalIndent(whole, "", " ")
	return append(b, '\n'), err
}

func (d *document) add(p Part, id string) {
	or := func(s string) string {
		if s == "" {
			return unknown
		}
		return s
	}
	out := part{ID: id, Name: p.Name, Version: p.Version, File: p.File, Source: or(p.Source), Concluded: unknown, Declared: or(p.Licence),
		Remark: p.Remark, Copyright: unknown, Comment: p.Comment}
	if p.SHA256 != "" {
		out.Checksums = []checksum{{"SHA256", p.SHA256}}
	}
	if p.URL != "" {
		out.Refs = []ref{{"PACKAGE-MANAGER", "purl", p.URL}}
	}
	d.Packages = append(d.Packages, out)
}

func (d *document) relate(from, kind, to string) {
	d.Relationships = append(d.Relationships, relationship{from, kind, to})
}

// identifier is the letters, digits, dots and hyphens of a package URL, and a
// few digits of its digest, since others become hyphens.
func identifier(url string) string {
	sum := sha256.Sum256([]byte(url))
	return "SPDXRef-" + strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return '-'
	}, strings.TrimPrefix(url, "pkg:")) + "-" + hex.EncodeToString(sum[:4])
}

// URLs are the package URLs of parts.
func URLs(parts []Part) []string {
	var out []string
	for _, p := range parts {
		out = append(out, p.URL)
	}
	return out
}

// Named returns the package URLs of a document, sorted.
func Named(text []byte) ([]string, error) {
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, fmt.Errorf("reading what the image is made of: %w", err)
	}
	if d.Version != "SPDX-2.3" {
		return nil, fmt.Errorf("reading what the image is made of: it is %.20q, and not SPDX-2.3", d.Version)
	}
	var out []string
	for _, p := range d.Packages {
		for _, r := range p.Refs {
			if r.Type == "purl" {
				out = append(out, r.Locator)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
