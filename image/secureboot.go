package image

import (
	"fmt"
	"path"
	"time"

	"gatehouse/firmware"
	"gatehouse/image/efivar"
	"gatehouse/image/initramfs"
	"gatehouse/image/keys"
	"gatehouse/image/pkcs7"
)

// secureBootFolder is where the box finds, for each variable NAME, the change
// NAME.auth that makes this image's keys the machine's.
const secureBootFolder = "etc/gatehouse/secureboot"

// addKeys puts the public halves of the keys into the image, signed as
// firmware asks: PK by itself, KEK by PK, db by KEK. Their time is the
// commit's, so that a build repeats.
func (p *payload) addKeys(set keys.Set, built string) error {
	at, err := time.Parse(time.RFC3339, built)
	if err != nil {
		return fmt.Errorf("signing the keys for the firmware: the time of the build: %w", err)
	}
	for r, by := range map[keys.Role]keys.Role{keys.Platform: keys.Platform, keys.Exchange: keys.Platform, keys.Programs: keys.Exchange} {
		signed, err := efivar.Sign(string(r), efivar.SignatureList(set[r].Certificate), at, pkcs7.Signer{Certificate: set[by].Certificate, Key: set[by].Signer})
		if err != nil {
			return err
		}
		p.files = append(p.files, initramfs.File{Path: path.Join(secureBootFolder, string(r)+".auth"), Content: signed, Mode: 0o644})
	}
	return nil
}

// revokedSince begins the times of changes of dbx. Firmware takes a change only if its time is
// later than that of the one before, and compares it with no clock (UEFI 2.10, 8.2.2). The time
// of the commit would not do: the list lies with the keys, and grows between two builds of one
// commit. So there is a second for each program, from a day that is later than every commit
// whose time was given out.
var revokedSince = time.Date(2027, time.January, 1, 0, 0, 0, 0, time.UTC)

// revoke puts into the image what firmware is to refuse, signed by KEK: a box that keeps
// this system tells its firmware (dbx). The list is the whole of it, and is in the image
// only if it names something.
func (p *payload) revoke(set keys.Set, list []keys.Revoked) error {
	if len(list) == 0 {
		return nil
	}
	at := revokedSince.Add(time.Duration(len(list)) * time.Second)
	for _, r := range list {
		p.revoked = append(p.revoked, r.SHA256)
	}
	signed, err := efivar.Sign("dbx", efivar.HashList(p.revoked), at, pkcs7.Signer{Certificate: set[keys.Exchange].Certificate, Key: set[keys.Exchange].Signer})
	if err != nil {
		return err
	}
	p.files = append(p.files, initramfs.File{Path: path.Join(secureBootFolder, "dbx.auth"), Content: signed, Mode: 0o644})
	return nil
}

// addSigners puts into the image who signs the release after it: that is what a
// box started from it goes by.
func (p *payload) addSigners(s keys.Signers) {
	p.files = append(p.files, initramfs.File{Path: firmware.KeysFile, Content: []byte(s.Next.Text()), Mode: 0o644})
}
