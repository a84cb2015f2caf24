package keys

import (
	"net/http"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

// api answers with the keys as they are now.
func (p *Pages) api(v *shell.Visit) error {
	k, err := p.look(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, k)
}

// after answers a change with what it made of the keys.
func (p *Pages) after(v *shell.Visit, err error) error {
	if err != nil {
		return err
	}
	return p.api(v)
}

func (p *Pages) apiRecovery(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	defer p.forget()
	key, err := p.MakeRecovery(v.Ctx(), by(v))
	if err != nil {
		return err
	}
	return v.JSON(http.StatusCreated, key)
}

func (p *Pages) apiConfirm(v *shell.Visit) error {
	var q control.RecoveryKey // its last group is enough
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.confirm(v, q.Text))
}

func (p *Pages) apiRotate(v *shell.Visit) error {
	var q struct {
		What string `json:"what"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.rotateOne(v, q.What))
}

func (p *Pages) apiPassphrase(v *shell.Visit) error {
	var q struct {
		Passphrase string `json:"passphrase"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.setPassphrase(v, q.Passphrase))
}

func (p *Pages) apiTPM(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.takeTPM(v))
}

func (p *Pages) apiBoot(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.enrol(v))
}
