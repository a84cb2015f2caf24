// Command pebble is an ACME server for tests, beside a box: it looks at ports 80 and 443.
package main

import (
	"fmt"
	"log"
	"net/http"
	"os"

	"gatehouse/appliance/cert/keeper/pebbletest"
)

const quarter = 90 * 24 * 3600 // seconds

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pebble:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("usage: pebble ADDRESS CHAIN KEY")
	}
	h, _, err := pebbletest.Handler(80, 443, quarter, log.New(os.Stdout, "", log.LstdFlags))
	if err != nil {
		return err
	}
	return http.ListenAndServeTLS(args[0], args[1], args[2], h)
}
