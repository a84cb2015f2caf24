package update

import (
	"net/http"
	"strconv"

	"gatehouse/appliance/console/shell"
	"gatehouse/appliance/control"
)

func (p *Pages) api(v *shell.Visit) error {
	d, err := p.document(v.Ctx())
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, d)
}

// after answers a change with what it made of the systems.
func (p *Pages) after(v *shell.Visit, err error) error {
	if err != nil {
		return err
	}
	return p.api(v)
}

// apiBundle takes a whole bundle, as it is in the file.
func (p *Pages) apiBundle(v *shell.Visit) error {
	u := uploadOf(v)
	at, err := p.Intake.Bundle(v.Ctx(), by(v), v.R.URL.Query().Get("again") == "yes", u.source(u))
	if err != nil {
		return stopped(err)
	}
	return v.JSON(http.StatusOK, at)
}

// apiOffer has a manifest judged, and answers from where on its system is wanted.
func (p *Pages) apiOffer(v *shell.Visit) error {
	var q struct {
		Manifest []byte `json:"manifest"`
		Again    bool   `json:"again"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	at, err := p.Intake.Offer(v.Ctx(), control.UpdateBegin{By: by(v), Manifest: q.Manifest, Again: q.Again})
	if err != nil {
		return err
	}
	return v.JSON(http.StatusOK, at)
}

// apiPart takes bytes of the system from an offset on, as many as come, and
// answers how far they go now.
func (p *Pages) apiPart(v *shell.Visit) error {
	query := v.R.URL.Query()
	offset, err := strconv.ParseInt(query.Get("offset"), 10, 64)
	if err != nil {
		return shell.Refuse("Say where the part begins: ?version=1.2.0&offset=0.")
	}
	d, err := p.Update(v.Ctx())
	if err != nil {
		return err
	}
	t := d.Transfer
	if t == nil || t.Version != query.Get("version") {
		return shell.Refuse("That version is not being received: offer its manifest first.")
	}
	u := uploadOf(v)
	at, err := p.Intake.Part(v.Ctx(), control.UpdateOffset{Version: t.Version, Size: t.Size, Offset: offset}, u.source(u))
	if err != nil {
		return stopped(err)
	}
	return v.JSON(http.StatusOK, at)
}

func (p *Pages) apiStart(v *shell.Visit) error {
	var q struct {
		Wait  bool `json:"wait"`
		Later bool `json:"later"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	_, err := p.begin(v, control.UpdateStart{Wait: q.Wait, Later: q.Later})
	return p.after(v, err)
}

func (p *Pages) apiCancel(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.Cancel(v.Ctx(), by(v)))
}

func (p *Pages) apiSettings(v *shell.Visit) error {
	var q control.UpdateSettings
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.set(v, q))
}

func (p *Pages) apiLook(v *shell.Visit) error {
	var q struct{}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.look(v, false, false))
}

func (p *Pages) apiReceive(v *shell.Visit) error {
	var q struct {
		Again bool `json:"again"`
	}
	if err := v.Decode(&q); err != nil {
		return err
	}
	return p.after(v, p.look(v, true, q.Again))
}
