package certificates

import (
	"net/http"

	"gatehouse/appliance/cert/keeper"
	"gatehouse/appliance/console/shell"
)

func (p *Pages) apiShow(v *shell.Visit) error { return v.JSON(http.StatusOK, p.keeper.View()) }

// apiRoot is the own CA's root, for everybody: TLS shows it, too. Whether it is
// this box's is for who asks to know, by the channel.
func (p *Pages) apiRoot(v *shell.Visit) error {
	a := p.keeper.Authority()
	if a == nil {
		return shell.Refuse("This box has no own CA.")
	}
	return v.JSON(http.StatusOK, map[string]string{"name": a.Root.Subject.CommonName, "pem": string(a.PEM()), "sha256": a.Fingerprint()})
}

// answer is the state after a change.
func (p *Pages) answer(v *shell.Visit, err error) error {
	if err != nil {
		return refusal(err)
	}
	return v.JSON(http.StatusOK, p.keeper.View())
}

func (p *Pages) apiUse(v *shell.Visit) error {
	var q keeper.Choice
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.answer(v, p.keeper.Choose(v.Ctx(), q, v.Record))
}

func (p *Pages) apiImport(v *shell.Visit) error {
	var q struct {
		Chain string `json:"chain"` // PEM
		Key   string `json:"key"`   // PEM
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.answer(v, p.keeper.Import([]byte(q.Chain), []byte(q.Key), v.Record))
}

func (p *Pages) apiRenew(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.answer(v, p.keeper.Renew(v.Record))
}

func (p *Pages) apiRevoke(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.answer(v, p.keeper.Revoke(v.Ctx(), v.Record))
}
