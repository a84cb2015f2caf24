package password

import (
	"math"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Strength is what a password is worth against someone who guesses in the
// order in which people choose.
type Strength struct {
	Score int    // 0 to 4
	Words string // the score in words, and what would raise it
}

// The least Score that is accepted, and the bounds of the length in characters.
const (
	LeastScore = 3
	MinLength  = 10
	MaxLength  = 256
)

var scoreWords = [...]string{
	"Very weak: among the first guesses.",
	"Weak: built like many others. Add words that do not belong together.",
	"Fair, not yet enough. Another word or two would do.",
	"Good.",
	"Strong.",
}

// Judge estimates how many guesses a password stands, with the words that
// anyone would try first (name, e-mail address, name of the box) given.
//
// It is the shortest-path idea of zxcvbn (Wheeler, USENIX Security 2016): cut
// the password into pieces that are words, sequences, repeats or single
// characters so that the product of the pieces' guesses is least. It is our
// own small form because the package that we take the word lists from parses
// all of them when the program starts: 7 MB in each of six processes.
func Judge(pw string, context ...string) Strength {
	runes := []rune(strings.ToValidUTF8(pw, "�"))
	if len(runes) > MaxLength {
		runes = runes[:MaxLength]
	}
	score := 0
	guesses := logGuesses(runes, newLexicon(context))
	for _, limit := range []float64{3, 6, 8, 10} {
		if guesses >= limit {
			score++
		}
	}
	return Strength{score, scoreWords[score]}
}

// logGuesses is the base-10 logarithm of the estimate.
func logGuesses(pw []rune, lex *lexicon) float64 {
	best := make([]float64, len(pw)+1)
	for end := 1; end <= len(pw); end++ {
		best[end] = best[end-1] + 1 // one character: ten guesses, as zxcvbn
		for start := max(0, end-maxPiece); start < end; start++ {
			if g := pieceGuesses(pw[start:end], lex); best[start]+g < best[end] {
				best[end] = best[start] + g
			}
		}
		// A repeat of what stands right before it costs little more than the count.
		for size := 1; size <= end/2; size++ {
			if equal(pw[end-2*size:end-size], pw[end-size:end]) && best[end-size]+0.3 < best[end] {
				best[end] = best[end-size] + 0.3
			}
		}
	}
	return best[len(pw)]
}

const maxPiece = 32

func pieceGuesses(p []rune, lex *lexicon) float64 {
	g := math.Inf(1)
	if n := len(p); n >= 3 {
		if step := p[1] - p[0]; (step == 1 || step == -1 || step == 0) && steady(p, step) {
			g = math.Log10(float64(n) * 10)
		}
		if keyboardRun(p) {
			g = min(g, math.Log10(float64(n)*20))
		}
	}
	if len(p) == 4 && isYear(p) {
		g = min(g, math.Log10(130))
	}
	if len(p) >= 2 {
		g = min(g, lex.guesses(p))
	}
	return g
}

func steady(p []rune, step rune) bool {
	for i := 1; i < len(p); i++ {
		if p[i]-p[i-1] != step {
			return false
		}
	}
	return true
}

func isYear(p []rune) bool {
	s := string(p)
	return s >= "1910" && s <= "2039" && strings.Trim(s, "0123456789") == ""
}

var keyboardRows = []string{"1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "azertyuiop", "1qaz2wsx3edc4rfv5tgb6yhn7ujm", "yxcvbnm"}

func keyboardRun(p []rune) bool {
	s := strings.ToLower(string(p))
	r := reverse(s)
	for _, row := range keyboardRows {
		if strings.Contains(row, s) || strings.Contains(row, r) {
			return true
		}
	}
	return false
}

func reverse(s string) string {
	b := []rune(s)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}

func equal(a, b []rune) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// caseGuesses is what the choice of capitals adds: none for a word in small
// letters, one bit for the usual forms, and more for a mixture.
func caseGuesses(p []rune) float64 {
	upper := 0
	for _, r := range p {
		if unicode.IsUpper(r) {
			upper++
		}
	}
	switch {
	case upper == 0:
		return 0
	case upper == len(p), upper == 1 && (unicode.IsUpper(p[0]) || unicode.IsUpper(p[len(p)-1])):
		return math.Log10(2)
	}
	return math.Log10(2) * float64(min(upper, len(p)-upper)+1)
}

// Problem says in words why a password is not accepted; "" if it is.
func Problem(pw string, context ...string) string {
	n := utf8.RuneCountInString(pw)
	switch {
	case !utf8.ValidString(pw):
		return "The password holds bytes that are not text (UTF-8). Type it again."
	case n < MinLength:
		return "The password is too short: at least 10 characters, better three or four words."
	case n > MaxLength:
		return "The password is longer than 256 characters."
	case newLexicon(nil).common(pw):
		return "This password is on the list of those that are tried first. Choose another."
	}
	if s := Judge(pw, context...); s.Score < LeastScore {
		return "The password is too easy to guess. " + s.Words
	}
	return ""
}
