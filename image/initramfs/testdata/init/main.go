// Command init is the smallest PID 1: it prints a line and waits.
package main

import (
	"fmt"
	"time"
)

// Set at build time.
var line = "unset"

func main() {
	fmt.Println("init:", line)
	for {
		time.Sleep(time.Hour)
	}
}
