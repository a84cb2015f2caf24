package boot

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// handedOn names the variable that carries the number of the file with the
// passphrase, from a program to itself.
const handedOn = "GATEHOUSE_KEY_FILE_NUMBER"

// shed starts the program anew if the passphrase came in its environment. The
// kernel keeps a process's first environment at the top of its stack, the Go
// runtime copies it to the heap, and neither can be told to forget: what forgets
// all of it is another program in the same process. It gets the passphrase in a
// file in memory, reads it once and overwrites it.
func shed(variable string) error {
	value, there := os.LookupEnv(variable)
	if !there {
		return nil
	}
	if value == "" {
		return os.Unsetenv(variable)
	}
	fail := func(err error) error {
		return fmt.Errorf("taking the passphrase out of the environment: %w", err)
	}
	fd, err := unix.MemfdCreate("passphrase", 0) // it is to be inherited
	if err != nil {
		return fail(err)
	}
	f := os.NewFile(uintptr(fd), "passphrase")
	defer f.Close()
	if _, err := f.WriteString(value); err != nil {
		return fail(err)
	}
	environment := slices.DeleteFunc(os.Environ(), func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return name == variable || name == handedOn
	})
	environment = append(environment, handedOn+"="+strconv.Itoa(fd))
	return fail(syscall.Exec("/proc/self/exe", os.Args, environment))
}

// handedPassphrase is what shed handed on; nil if nothing was.
func handedPassphrase() ([]byte, error) {
	text, there := os.LookupEnv(handedOn)
	if !there {
		return nil, nil
	}
	passphrase, err := readHanded(text)
	if err != nil {
		return nil, fmt.Errorf("reading the passphrase that was handed on: %w", err)
	}
	return passphrase, os.Unsetenv(handedOn)
}

func readHanded(number string) ([]byte, error) {
	fd, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "passphrase")
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	passphrase := make([]byte, min(info.Size(), 64<<10)) // once, of the right size: growing would leave parts behind
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, info.Size()), passphrase); err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(make([]byte, len(passphrase)), 0); err != nil {
		clear(passphrase)
		return nil, err
	}
	return passphrase, nil
}
