// Command exits is a system that is sick: its PID 1 ends at once, and the kernel with it.
package main

import "os"

func main() { os.Exit(1) }
