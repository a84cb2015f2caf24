package monitor

import (
	"context"
	"time"

	"gatehouse/appliance/control"
)

// Seed is what the box is told by whoever set it up, as far as roles carry it
// out. It counts until the box has an owner.
type Seed struct {
	Owner      *control.SeedOwner // nil: it names none, and the box is claimed with a code
	SecureBoot bool               // the keys of the image are to be enrolled for the owner
	// Forget overwrites it on its medium, so that nobody reads it there later.
	Forget func(box string) error
}

// seedOwner is whom the console is to claim the box for. A problem that the
// console had with it ends the seed.
func (m *Monitor) seedOwner(problem string) *control.SeedOwner {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seed == nil || m.seed.Owner == nil {
		return nil
	}
	if problem == "" {
		return m.seed.Owner
	}
	m.cfg.Logger.Error("the seed was refused; the box is claimed with a code", "why", problem)
	m.seed, m.seedProblem = nil, "The owner it names was not taken: "+problem+"."
	return nil
}

// seeds says whether the box may be claimed for an owner by the seed: it names
// him, and was not refused. The state is still starting then.
func (m *Monitor) seeds(owner string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == control.StateStarting && m.seed != nil && m.seed.Owner != nil && m.seed.Owner.Email == owner
}

// finishSeed does what is left of a seed once the box has an owner, whoever
// that is: the medium is overwritten. A power cut before that leaves the seed on
// it; the next start does not look at it any more, but for overwriting one on
// the box's own disk.
func (m *Monitor) finishSeed() {
	m.mu.Lock()
	seed, owner := m.seed, m.owner
	m.seed = nil
	m.mu.Unlock()
	if seed == nil {
		return
	}
	ctx := context.Background()
	event := control.Event{Actor: "system", Action: "seed forgotten", Object: m.cfg.Name}
	err := seed.Forget(m.cfg.Name)
	if err != nil {
		event.Outcome, event.Detail = "failed", map[string]string{"error": err.Error()}
		m.cfg.Logger.Error("the seed is still on its medium", "err", err)
		m.sayOfSeed("It is still on its medium, with the hash of the owner's password: " + err.Error() + ". Take the medium out and erase it.")
	}
	if err := m.audit(ctx, event); err != nil {
		m.cfg.Logger.Error("what became of the seed was not recorded", "err", err)
	}
	if seed.SecureBoot && seed.Owner != nil && seed.Owner.Email == owner {
		// After the answer: the console waits for it, and enrolling takes seconds.
		time.AfterFunc(answerTime, m.enrolBySeed)
	}
}

// enrolBySeed has the keys of the image written into the firmware, then the
// machine restarted: until then Secure Boot is not on.
func (m *Monitor) enrolBySeed() {
	ctx := context.Background()
	by := control.By{Actor: "seed"}
	err := m.changeKeys(ctx, by, "Secure Boot keys enrolled", "", func(k Keys) error { return k.EnrolSecureBoot(ctx) })
	if err != nil {
		m.cfg.Logger.Error("Secure Boot was not set up as the seed asks", "err", err)
		m.sayOfSeed("The keys of Secure Boot were not enrolled: " + err.Error() + ".")
		return
	}
	if err := m.power(ctx, control.Power{Actor: "seed", Action: "restart"}); err != nil {
		m.cfg.Logger.Error("the restart that turns Secure Boot on", "err", err)
	}
}

func (m *Monitor) sayOfSeed(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.seedProblem != "" {
		text = m.seedProblem + " " + text
	}
	m.seedProblem = text
}
