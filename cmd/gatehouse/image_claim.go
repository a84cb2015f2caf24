package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"gatehouse/appliance/setup/proof"
	"gatehouse/appliance/vault"
	"gatehouse/appliance/volume/installer"
	"gatehouse/image/disk"
)

func imageClaimCodeCommand() *cobra.Command {
	var code string
	var asJSON bool
	c := &cobra.Command{
		Use:   "claim-code IMAGE|DEVICE",
		Short: "Set the claim code of a box before its first start",
		Long: `Set the claim code of a box before its first start, for one without a display.

A code is made and printed once, or taken from --code. The image, or the device
that it was written to, gets only what verifies the code. The box then shows
none at its console; there "New code" makes another one if this one is lost.
Every disk should get a code of its own: set it after copying the image.`,
		Example: "  gatehouse image claim-code build/gatehouse-amd64.img\n" +
			"  gatehouse image claim-code /dev/sdX\n  gatehouse image claim-code box.img --code file:code",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := chooseCode(code, cmd.InOrStdin())
			if err != nil {
				return err
			}
			f, err := openUnstarted(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			if isMedium(f) {
				return fail(exitUsage, "%s is the medium that installs: set the code on the disk that it is installed to, or have gatehouse image customize name an owner", args[0])
			}
			if err := setClaimCode(f, chosen); err != nil {
				return err
			}
			made := ""
			if code == "" {
				made = chosen.String()
			}
			return printCode(cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], made, asJSON)
		},
	}
	c.Flags().StringVar(&code, "code", "", "a code of your own, 12 symbols: `file:PATH` or -")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printCode(stdout, stderr io.Writer, file, made string, asJSON bool) error {
	fmt.Fprintf(stderr, "Whoever has the code and reaches the box first owns it: keep it until the box is yours.\nStart the box from %s, then: gatehouse setup, which finds it and asks for the code.\n", file)
	if asJSON {
		return printJSON(stdout, struct {
			Image string `json:"image"`
			Code  string `json:"code,omitempty"` // only if it was made here
		}{file, made})
	}
	if made == "" {
		return nil
	}
	_, err := fmt.Fprintln(stdout, made)
	return err
}

func chooseCode(given string, stdin io.Reader) (proof.Code, error) {
	if given == "" {
		return proof.NewCode(rand.Reader)
	}
	if err := checkSecretFlag("code", given); err != nil {
		return proof.Code{}, err
	}
	text, err := readSecret("code", given, stdin)
	if err != nil {
		return proof.Code{}, err
	}
	code, err := proof.ParseCode(text)
	if err != nil {
		return code, fail(exitUsage, "--code: %w", err)
	}
	return code, nil
}

// openUnstarted opens an image of ours that no box was started from, or the medium
// that installs one. A device
// is opened for us alone, which the kernel refuses while one of its partitions
// is mounted or otherwise in use.
func openUnstarted(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fail(exitNotFound, "there is nothing to write to: %w", err)
	}
	if err != nil {
		return nil, fmt.Errorf("looking at %s: %w", path, err)
	}
	flags := os.O_RDWR
	switch mode := info.Mode(); {
	case mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0:
		flags |= os.O_EXCL
	case !mode.IsRegular():
		return nil, fail(exitUsage, "%s is neither a file nor a disk", path)
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, fail(exitConflict, "%s is in use: unmount its partitions first, and look twice whether it is the right disk", path)
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	if err := checkUnstarted(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkUnstarted(f *os.File) error {
	var first [4]byte
	if _, err := f.ReadAt(first[:], 0); err != nil {
		return fail(exitUsage, "%s is no image of a Gatehouse: %w", f.Name(), err)
	}
	for magic, what := range map[string]string{
		"\x1f\x8b":         "unpack it first: gunzip -k",
		"QFI\xfb":          "take the .img, and convert that afterwards: qemu-img convert -O qcow2",
		"\x28\xb5\x2f\xfd": "unpack it first: zstd -d",
	} {
		if bytes.HasPrefix(first[:], []byte(magic)) {
			return fail(exitUsage, "%s is packed, and its content cannot be changed in place: %s", f.Name(), what)
		}
	}
	if isMedium(f) {
		return nil // it keeps nothing, however often it was started
	}
	start, err := disk.Meta(f)
	if err != nil {
		return fail(exitUsage, "%s is no image of a Gatehouse: %w", f.Name(), err)
	}
	blank, err := vault.Unwritten(partition{f, start})
	if err != nil {
		return fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	if !blank {
		return fail(exitConflict, "a box was started from %s already, and may have an owner: write the image to it anew, or use the code at its console", f.Name())
	}
	return nil
}

// isMedium says whether it is the medium that installs.
func isMedium(f *os.File) bool {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false
	}
	_, err = installer.Open(f, size)
	return err == nil
}

// setClaimCode writes what verifies a code to a disk of ours, never the code.
func setClaimCode(f *os.File, code proof.Code) error {
	start, err := disk.Meta(f)
	if err != nil {
		return fmt.Errorf("setting the claim code: %w", err)
	}
	var salt [proof.SaltSize]byte
	if _, err := rand.Read(salt[:]); err != nil {
		return fmt.Errorf("drawing a salt: %w", err)
	}
	if err := vault.WriteClaimVerifier(partition{f, start}, salt, proof.Derive(code, salt)); err != nil {
		return fmt.Errorf("setting the claim code: %w", err)
	}
	return f.Close()
}
