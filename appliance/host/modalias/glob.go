package modalias

import "strings"

// glob matches as fnmatch(3) without flags does, which is what depmod's
// patterns are written for: * ? [abc] [a-c] [!a]. A backslash takes the next
// byte as it is. Time is bounded by len(pattern) × len(s): after a failure
// only the last star is widened, which is enough (no star before it can help).
func glob(pattern, s string) bool {
	px, sx := 0, 0
	starP, starS := -1, 0
	for sx < len(s) {
		if px < len(pattern) {
			if pattern[px] == '*' {
				starP, starS = px, sx
				px++
				continue
			}
			if n := one(pattern[px:], s[sx]); n > 0 {
				px += n
				sx++
				continue
			}
		}
		if starP < 0 {
			return false
		}
		starS++
		px, sx = starP+1, starS
	}
	return strings.Trim(pattern[px:], "*") == ""
}

// one matches one byte and says how long its pattern was; 0 is no match.
func one(pattern string, c byte) int {
	switch pattern[0] {
	case '?':
		return 1
	case '[':
		if n, ok := class(pattern, c); n > 0 {
			if ok {
				return n
			}
			return 0
		}
	case '\\':
		if len(pattern) > 1 {
			if pattern[1] == c {
				return 2
			}
			return 0
		}
	}
	if pattern[0] == c {
		return 1
	}
	return 0
}

// class matches a bracket expression; length 0 means that it has no end and
// the bracket stands for itself.
func class(pattern string, c byte) (length int, ok bool) {
	i := 1
	negate := i < len(pattern) && (pattern[i] == '!' || pattern[i] == '^')
	if negate {
		i++
	}
	for first := true; i < len(pattern); first = false {
		if pattern[i] == ']' && !first {
			return i + 1, ok != negate
		}
		low := pattern[i]
		high := low
		if i+2 < len(pattern) && pattern[i+1] == '-' && pattern[i+2] != ']' {
			high = pattern[i+2]
			i += 2
		}
		if low <= c && c <= high {
			ok = true
		}
		i++
	}
	return 0, false
}
