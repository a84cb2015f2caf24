package password

import (
	"encoding/json"
	"hash/maphash"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/ccojocar/zxcvbn-go/data"
)

// lists are zxcvbn's, by their names in the module's data package, most common
// first. That package only holds them compressed; it runs nothing at start.
var lists = []string{"Passwords", "English", "FemaleNames", "MaleNames", "Surnames"}

// words is a set of words with their ranks: the upper 48 bits of an entry are
// a hash of the word, the lower 16 its rank. 90,000 words take 720 kB and are
// given back when nobody judged passwords for a while, which is nearly always.
type words struct {
	seed    maphash.Seed
	entries []uint64
	common  []uint64 // the list of passwords alone
}

// keepFor is longer than somebody tries passwords until one is good.
const keepFor = time.Minute

var cache struct {
	mu   sync.Mutex
	kept *words
	drop *time.Timer
}

func loadWords() *words {
	cache.mu.Lock()
	defer cache.mu.Unlock()
	if w := cache.kept; w != nil {
		cache.drop.Reset(keepFor)
		return w
	}
	w := &words{seed: maphash.MakeSeed()}
	for _, name := range lists {
		var list struct{ List []string }
		b, err := data.Asset("data/" + name + ".json")
		if err == nil {
			err = json.Unmarshal(b, &list)
		}
		if err != nil || len(list.List) < 100 {
			// The lists are part of the program: without them every password
			// would seem strong, so that is not gone past.
			panic("the word list " + name + " of zxcvbn-go is missing or has another form")
		}
		for rank, word := range list.List {
			e := w.hash(strings.ToLower(word))<<16 | uint64(min(rank+1, 0xffff))
			w.entries = append(w.entries, e)
			if name == "Passwords" {
				w.common = append(w.common, e)
			}
		}
	}
	slices.Sort(w.entries)
	slices.Sort(w.common)
	cache.kept = w
	cache.drop = time.AfterFunc(keepFor, func() {
		cache.mu.Lock()
		defer cache.mu.Unlock()
		cache.kept = nil
	})
	return w
}

func (w *words) hash(s string) uint64 { return maphash.String(w.seed, s) & (1<<48 - 1) }

// rank returns the least rank of a word, 0 if it is in no list.
func (w *words) rank(set []uint64, s string) int {
	h := w.hash(s)
	i, _ := slices.BinarySearch(set, h<<16)
	if i < len(set) && set[i]>>16 == h {
		return int(set[i] & 0xffff)
	}
	return 0
}

// lexicon is the words and those of one person's context.
type lexicon struct {
	*words
	context []string
}

func newLexicon(context []string) *lexicon {
	l := &lexicon{words: loadWords(), context: []string{"gatehouse"}}
	for _, c := range context {
		c = strings.ToLower(c)
		l.context = append(l.context, c)
		l.context = append(l.context, strings.FieldsFunc(c, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r)
		})...)
	}
	return l
}

// unleet undoes the usual replacements of letters.
var unleet = strings.NewReplacer("4", "a", "@", "a", "3", "e", "1", "i", "!", "i", "0", "o", "$", "s", "5", "s", "7", "t", "+", "t", "2", "z", "8", "b", "9", "g")

// guesses is the logarithm of the guesses for a piece that is a word, in small
// letters, with capitals, with letters replaced, or backwards.
func (l *lexicon) guesses(p []rune) float64 {
	lower := strings.ToLower(string(p))
	plain := unleet.Replace(lower)
	g := math.Inf(1)
	for i, s := range []string{lower, reverse(lower), plain} {
		if i == 2 && plain == lower {
			break
		}
		rank := l.rank(l.entries, s)
		if len(s) >= 3 && slices.Contains(l.context, s) {
			rank = 1
		}
		if rank == 0 {
			continue
		}
		cost := math.Log10(float64(rank)) + caseGuesses(p)
		if i > 0 {
			cost += math.Log10(2)
		}
		g = min(g, cost)
	}
	return g
}

// common says whether a password is, as a whole, one of the common ones.
func (l *lexicon) common(pw string) bool {
	lower := strings.ToLower(pw)
	for _, s := range []string{lower, strings.TrimRight(lower, "0123456789!."), unleet.Replace(lower)} {
		if s != "" && l.rank(l.words.common, s) > 0 {
			return true
		}
	}
	return false
}
