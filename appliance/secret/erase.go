//go:build goexperiment.runtimesecret

package secret

import (
	"runtime"
	"runtime/secret"
	"sync/atomic"
	"time"
)

// Erases says that Do erases: the program was built with
// GOEXPERIMENT=runtimesecret.
const Erases = true

// soon is how long what f allocated may stay: long enough that a start with its
// dozens of keys costs one collection, not dozens.
const soon = time.Second

var waiting atomic.Bool

// Do runs f. Registers and stack that f used are erased before Do returns;
// what f allocated is erased by the garbage collector, which is run a second
// later. f must start no goroutine that sees the secret, and must copy what it
// gives back into memory that was there before.
func Do(f func()) {
	defer collect()
	secret.Do(f)
}

// collect has the garbage collector run soon: by itself it runs when the heap
// has grown, which on an idle box is minutes away.
func collect() {
	if waiting.CompareAndSwap(false, true) {
		time.AfterFunc(soon, func() {
			waiting.Store(false)
			runtime.GC()
		})
	}
}
