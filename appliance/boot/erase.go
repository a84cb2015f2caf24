package boot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatehouse/appliance/panel"
	"gatehouse/appliance/vault"
)

const (
	// discardTime is how long the data volume may take to be discarded. A device
	// that knows how takes seconds; one that does not is written over as far as
	// the time goes: somebody stands there, and the key is gone already.
	discardTime = 2 * time.Minute
	// readTime is how long the console shows what came of it before the restart.
	readTime = 5 * time.Second
)

// erase forgets everything, in an order that leaves nothing usable behind
// whenever the power is cut. Here what opens the data: the header first, without
// which the data volume is noise, and what makes a copy of it worthless. The
// rest is done by finishErasing, when nothing writes to the volume any more.
func (b *box) erase(ctx context.Context) error {
	if b.config.Meta == nil {
		return errors.New("there is no disk of this box to erase")
	}
	if err := vault.WriteErasure(b.meta, vault.Erasure{Words: "The power went before the end."}); err != nil {
		b.log.Warn("the next start will not know that the box was erased", "err", err)
	}
	if err := vault.Forget(ctx, b.config); err != nil {
		if gone, lookErr := vault.Unwritten(b.meta); lookErr != nil || !gone {
			return err
		}
		b.log.Error("the header is gone, and the TPM did not forget; it is asked again at the end", "err", err)
	}
	b.mu.Lock()
	b.erasing = true
	b.mu.Unlock()
	b.log.Warn("the keys are erased: the data volume is discarded once the roles have ended")
	return nil
}

// finishErasing discards the data volume, takes the latch out of the TPM, and
// says on every console what came of it. The volume is closed.
func (b *box) finishErasing() {
	ctx, cancel := context.WithTimeout(context.Background(), discardTime+time.Minute)
	defer cancel()
	if b.watchdog != nil {
		go b.kick(ctx) // ends with ctx; the machine ends before it
	}
	consoles := b.terminals()
	tell(consoles, "The data volume is being discarded: this takes at most some minutes. Leave the box on.")
	e := b.eraseRest(ctx)
	if err := vault.WriteErasure(b.meta, e); err != nil {
		e.Words += " The next start cannot repeat this: " + err.Error() + "."
	}
	tell(consoles, told(e))
	time.Sleep(readTime)
}

// eraseRest does it. META and TPM are erased once more: until they ended, roles
// could have had something written there.
func (b *box) eraseRest(ctx context.Context) vault.Erasure {
	forgotten := vault.Forget(ctx, b.config)
	words := b.discard(ctx)
	err := forgotten
	if err == nil {
		err = vault.Unlatch(ctx, b.config)
	}
	switch {
	case err != nil:
		words += fmt.Sprintf(" Not everything was forgotten: %v. The next start is locked; erase again there.", err)
	case b.tpm != nil:
		words += " The TPM forgot this box."
	}
	return vault.Erasure{Done: err == nil, Words: words}
}

// discard discards the data volume within its time, and says so.
func (b *box) discard(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, discardTime)
	defer cancel()
	result, err := b.disk.Discard(ctx)
	if err != nil {
		return fmt.Sprintf("The data volume could not be discarded (%v); it is encrypted, and the key is gone.", err)
	}
	return result.String()
}

// discardAgain ends what a power cut interrupted, before the first volume of a
// new box is made on the blocks of the old one.
func (b *box) discardAgain(ctx context.Context) error {
	e, there, err := vault.ReadErasure(b.meta)
	if err != nil || !there || e.Done {
		return err
	}
	return vault.WriteErasure(b.meta, vault.Erasure{Done: true, Words: e.Words + " At this start: " + b.discard(ctx)})
}

// erasedBefore is what the consoles show at the start that follows Erase, and at
// one that is locked because Erase came to no end. A later one forgets it.
func (b *box) erasedBefore() string {
	if b.meta == nil {
		return ""
	}
	e, there, err := vault.ReadErasure(b.meta)
	if err != nil {
		b.log.Warn("reading what was erased", "err", err)
	}
	if !there {
		return ""
	}
	if b.keys != nil && !b.made {
		if err := vault.ClearErasure(b.meta); err != nil {
			b.log.Warn("forgetting what was erased", "err", err)
		}
		return ""
	}
	b.log.Warn("the box was erased before this start", "done", e.Done, "what", e.Words)
	return told(e)
}

func told(e vault.Erasure) string {
	if e.Done {
		return "Erased. " + e.Words
	}
	return "Not erased to the end. " + e.Words
}

func tell(consoles []panel.Terminal, text string) {
	for _, c := range consoles {
		done := make(chan struct{})
		go func() { // a serial line may hang
			defer close(done)
			fmt.Fprintf(c, "\n gatehouse: %s\n", text)
		}()
		select {
		case <-done:
		case <-time.After(time.Second):
		}
	}
}
