package boot

import (
	"context"
	"os"
	"path/filepath"

	"gatehouse/appliance/lists"
	"gatehouse/appliance/supervise"
	"gatehouse/appliance/vault"
)

// rememberKept copies the lists in force to META, beside the network settings,
// and has the TPM remember both. Without it a locked box lets its own networks in.
func (b *box) rememberKept(folder *lists.Folder) {
	b.remembering.Lock()
	defer b.remembering.Unlock()
	if folder != nil {
		b.folder = folder
	}
	if b.keys == nil || b.meta == nil || b.folder == nil {
		return
	}
	packed, err := b.folder.Pack(vault.MaxLists)
	if err != nil {
		b.log.Warn("a locked start would let in this box's own networks alone", "err", err)
	}
	if err = vault.WriteLists(b.meta, packed); err == nil {
		err = b.keys.RememberKept(context.Background())
	}
	if err != nil {
		b.log.Warn("a locked start would not use lists and network as they are now", "err", err)
	}
}

// judgeKept asks the TPM once a start: what is set at the console of the locked
// box counts until its next start.
func (b *box) judgeKept(ctx context.Context) vault.Standing {
	b.remembering.Lock()
	defer b.remembering.Unlock()
	if b.standing != nil {
		return *b.standing
	}
	standing, err := vault.JudgeKept(ctx, b.config)
	if err != nil {
		b.log.Warn("whether lists and network in META are what was kept is not known", "err", err)
	}
	b.standing = &standing
	return standing
}

// unpackLists brings the lists that were last kept into a locked start, if the
// TPM vouches for them. Else only the box's own networks get in: to widen that
// is what a thief would write the disk for.
func (b *box) unpackLists(ctx context.Context, p *supervise.Paths) {
	if b.config.Meta == nil {
		return
	}
	packed, err := vault.ReadLists(b.config.Meta)
	if err == nil && len(packed) == 0 {
		return
	}
	if standing := b.judgeKept(ctx); standing != vault.Same {
		b.log.Warn("the allowlists in META are not used: the TPM does not vouch for them; only this box's own networks get in")
		return
	}
	dir := filepath.Join(filepath.Dir(p.Control), "locked-lists") // in memory
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err == nil {
		err = lists.Unpack(dir, packed)
	}
	if err != nil {
		b.log.Error("the allowlists that were kept cannot be used; only this box's own networks get in", "err", err)
		return
	}
	listPaths(p)
	p.Lists = dir
}
