// Package report is what a site tells its hub about its machine: what it is and how it is.
package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"time"

	"gatehouse/appliance/enroll"
)

// MaxReport is the longest report on the wire, in bytes.
const MaxReport = 256 << 10

const (
	maxList = 256 // disks, links, sensors: more is not this machine
	maxText = 128 // bytes
)

// Report carries an inventory, a health, or both.
type Report struct {
	Version   int        `json:"version"` // enroll.Version
	Inventory *Inventory `json:"inventory,omitempty"`
	Health    *Health    `json:"health,omitempty"`
}

// Inventory is what changes seldom.
type Inventory struct {
	At       time.Time `json:"at"`
	Host     string    `json:"host"`
	Version  string    `json:"version"` // of the program
	Kernel   string    `json:"kernel"`
	System   string    `json:"system"` // linux/amd64
	Machine  Machine   `json:"machine"`
	CPU      CPU       `json:"cpu"`
	Memory   uint64    `json:"memory"` // bytes
	Disks    []Disk    `json:"disks"`
	Links    []Link    `json:"links"`
	BootedAt time.Time `json:"booted_at"`
}

// Machine is from SMBIOS, where the kernel lets the agent read it. The serial
// number and UUID are not there: the kernel keeps them for root, and the agent
// does not ask.
type Machine struct {
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	Board   string `json:"board"`
	BIOS    string `json:"bios"` // vendor, version, date
}

// CPU is the processor.
type CPU struct {
	Model string `json:"model"`
	Count int    `json:"count"` // logical
}

// Disk is one whole block device.
type Disk struct {
	Name       string `json:"name"`
	Model      string `json:"model"`
	Serial     string `json:"serial,omitempty"` // of drives that tell everyone
	Size       uint64 `json:"size"`             // bytes
	Rotational bool   `json:"rotational"`
	Removable  bool   `json:"removable"`
}

// Link is one network interface that has hardware behind it.
type Link struct {
	Name   string `json:"name"`
	MAC    string `json:"mac"`
	Driver string `json:"driver,omitempty"`
	Speed  int    `json:"speed,omitempty"` // Mbit/s, 0 if unknown
	Up     bool   `json:"up"`
}

// Health is what changes all the time.
type Health struct {
	At           time.Time     `json:"at"`
	Uptime       float64       `json:"uptime"` // seconds
	Load         [3]float64    `json:"load"`   // 1, 5, 15 minutes
	Memory       Usage         `json:"memory"`
	Swap         Usage         `json:"swap"`
	Volumes      []Volume      `json:"volumes"`
	Temperatures []Temperature `json:"temperatures"`
}

// Usage is in bytes.
type Usage struct {
	Total     uint64 `json:"total"`
	Available uint64 `json:"available"`
}

// Volume is one mounted place.
type Volume struct {
	Name string `json:"name"` // what it is to people: data
	Usage
}

// Temperature is one sensor, in degrees Celsius.
type Temperature struct {
	Sensor  string  `json:"sensor"`
	Celsius float64 `json:"celsius"`
}

// Parse takes one report, known fields only, and judges every value: a site
// writes it, people of the hub read it.
func Parse(b []byte) (Report, error) {
	var r Report
	if len(b) > MaxReport {
		return r, fmt.Errorf("%w: a report of %d bytes, the limit is %d", enroll.ErrMalformed, len(b), MaxReport)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return Report{}, fmt.Errorf("%w: %w", enroll.ErrMalformed, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Report{}, fmt.Errorf("%w: something follows the report", enroll.ErrMalformed)
	}
	if err := r.Validate(); err != nil {
		return Report{}, err
	}
	return r, nil
}

// Validate judges every value of a report.
func (r Report) Validate() error {
	if r.Version != enroll.Version {
		return fmt.Errorf("%w: %d, here %d", enroll.ErrVersion, r.Version, enroll.Version)
	}
	if r.Inventory == nil && r.Health == nil {
		return fmt.Errorf("%w: a report has an inventory, a health, or both", enroll.ErrMalformed)
	}
	if r.Inventory != nil {
		if err := r.Inventory.validate(); err != nil {
			return err
		}
	}
	if r.Health != nil {
		return r.Health.validate()
	}
	return nil
}

func (i *Inventory) validate() error {
	if len(i.Disks) > maxList || len(i.Links) > maxList {
		return fmt.Errorf("%w: more than %d disks or links", enroll.ErrMalformed, maxList)
	}
	if i.CPU.Count < 0 || i.CPU.Count > 1<<16 {
		return fmt.Errorf("%w: %d processors", enroll.ErrMalformed, i.CPU.Count)
	}
	t := []string{i.Host, i.Version, i.Kernel, i.System, i.CPU.Model,
		i.Machine.Vendor, i.Machine.Product, i.Machine.Board, i.Machine.BIOS}
	for _, d := range i.Disks {
		t = append(t, d.Name, d.Model, d.Serial)
	}
	for _, l := range i.Links {
		if _, err := net.ParseMAC(l.MAC); l.MAC != "" && err != nil {
			return fmt.Errorf("%w: a link's address: %w", enroll.ErrMalformed, err)
		}
		t = append(t, l.Name, l.Driver)
	}
	return texts(t)
}

func (h *Health) validate() error {
	if len(h.Volumes) > maxList || len(h.Temperatures) > maxList {
		return fmt.Errorf("%w: more than %d volumes or sensors", enroll.ErrMalformed, maxList)
	}
	if !(h.Uptime >= 0 && h.Uptime <= 1e10) { // NaN neither
		return fmt.Errorf("%w: an uptime of %g s", enroll.ErrMalformed, h.Uptime)
	}
	for _, l := range h.Load {
		if !(l >= 0 && l <= 1e7) {
			return fmt.Errorf("%w: a load of %g", enroll.ErrMalformed, l)
		}
	}
	use := []Usage{h.Memory, h.Swap}
	var t []string
	for _, v := range h.Volumes {
		use, t = append(use, v.Usage), append(t, v.Name)
	}
	for _, u := range use {
		if u.Available > u.Total {
			return fmt.Errorf("%w: %d of %d bytes available", enroll.ErrMalformed, u.Available, u.Total)
		}
	}
	for _, s := range h.Temperatures {
		if !(math.Abs(s.Celsius) <= 1000) {
			return fmt.Errorf("%w: a temperature of %g degrees", enroll.ErrMalformed, s.Celsius)
		}
		t = append(t, s.Sensor)
	}
	return texts(t)
}

func texts(list []string) error {
	for _, s := range list {
		if err := enroll.CheckText(s, maxText); err != nil {
			return err
		}
	}
	return nil
}
