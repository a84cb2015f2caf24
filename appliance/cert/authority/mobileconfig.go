package authority

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/xml"
	"fmt"
)

// MobileConfig is the root as a profile that iPhones, iPads and Macs install
// (Apple, Device Management: CertificateRoot). It is not signed: who installs
// it has compared its fingerprint, or fetched it over a channel he trusts.
func (a *Authority) MobileConfig(box string) []byte {
	// Identifiers are made of the root, so that installing twice replaces.
	sum := sha256.Sum256(a.Root.Raw)
	id := func(n byte) string {
		h := sha256.Sum256(append([]byte{n}, sum[:]...))
		h[6], h[8] = h[6]&0x0F|0x80, h[8]&0x3F|0x80 // RFC 9562: version 8, ours
		return fmt.Sprintf("%X-%X-%X-%X-%X", h[:4], h[4:6], h[6:8], h[8:10], h[10:16])
	}
	text := func(s string) string {
		var b bytes.Buffer
		xml.EscapeText(&b, []byte(s)) // a Buffer does not fail
		return b.String()
	}
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0"><dict>
<key>PayloadContent</key><array><dict>
<key>PayloadCertificateFileName</key><string>%[1]s.crt</string>
<key>PayloadContent</key><data>%[2]s</data>
<key>PayloadDisplayName</key><string>%[3]s</string>
<key>PayloadIdentifier</key><string>gatehouse.%[1]s.root</string>
<key>PayloadType</key><string>com.apple.security.root</string>
<key>PayloadUUID</key><string>%[4]s</string>
<key>PayloadVersion</key><integer>1</integer>
</dict></array>
<key>PayloadDescription</key><string>Lets this device trust the pages of the Gatehouse box %[1]s, and nothing else.</string>
<key>PayloadDisplayName</key><string>%[3]s</string>
<key>PayloadIdentifier</key><string>gatehouse.%[1]s</string>
<key>PayloadType</key><string>Configuration</string>
<key>PayloadUUID</key><string>%[5]s</string>
<key>PayloadVersion</key><integer>1</integer>
</dict></plist>
`, text(box), base64.StdEncoding.EncodeToString(a.Root.Raw), text(a.Root.Subject.CommonName), id(1), id(2))
}
