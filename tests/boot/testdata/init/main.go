// Command tinyinit prints a line as PID 1 and waits.
package main

import (
	"fmt"
	"os"
	"time"
)

func main() {
	fmt.Println("tiny: init runs as", os.Getpid())
	for {
		time.Sleep(time.Hour)
	}
}
