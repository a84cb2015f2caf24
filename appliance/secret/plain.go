//go:build !goexperiment.runtimesecret

package secret

// Erases says that Do erases nothing: the program was built without
// GOEXPERIMENT=runtimesecret.
const Erases = false

// Do runs f, and erases nothing.
func Do(f func()) { f() }
