package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"gatehouse/appliance/account/password"
	"gatehouse/appliance/control"
	"gatehouse/appliance/netconf"
	"gatehouse/appliance/seed"
	"gatehouse/image/disk"
)

// customizing is the flags of image customize.
type customizing struct {
	name, email, password string
	hostName              string
	network, link         string
	addresses, gateways   []string
	resolvers             []string
	secureBoot            bool
	serial                string
	asJSON                bool
}

func imageCustomizeCommand() *cobra.Command {
	var o customizing
	c := &cobra.Command{
		Use:   "customize IMAGE|DEVICE|-",
		Short: "Give a box its owner, name and network before its first start",
		Long: `Give a box its owner, its name and its network before its first start: it then
comes up owned, without a claim code.

The image, or the device that it was written to, gets a small partition with the
file seed.json; what was signed stays as it is. On the medium that installs (the
.iso, on a USB stick) --install-to names the disk that it writes to without
asking: what is on that is lost. Leave the stick in until the box has its owner.
With - the file is written to
standard output: put it onto a USB stick whose FAT file system has the label
GATESEED, and the stick into the box.

The password is asked for and stored as the box stores it, hashed. Who reads the
medium before the box has used it can try passwords at leisure: choose a good
one, and keep the medium as you would keep a claim code. The second factor is
set up at the first sign-in. The box overwrites the seed once it has an owner,
and never looks at one afterwards.`,
		Example: "  gatehouse image customize box.img --email ada@example.org --name 'Ada Lovelace' --address 192.0.2.7/24 --gateway 192.0.2.1\n" +
			"  gatehouse image customize /dev/sdX --email ada@example.org --name Ada --password file:password --hostname attic\n" +
			"  gatehouse image customize gatehouse-amd64.iso --install-to S3R1AL --email ada@example.org --name Ada --secure-boot\n" +
			"  gatehouse image customize - --network network.toml >seed.json",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" {
				s, err := o.seed(cmd)
				if err != nil {
					return err
				}
				text, err := s.Encode()
				if err != nil {
					return fail(exitUsage, "the seed: %w", err)
				}
				_, err = cmd.OutOrStdout().Write(text)
				return err
			}
			f, err := openUnstarted(args[0]) // before anybody types a password
			if err != nil {
				return err
			}
			defer f.Close()
			medium := isMedium(f)
			if o.serial != "" && !medium {
				return fail(exitUsage, "--install-to is for the medium that installs, and %s is the disk of a box: take the .iso, or leave the flag out", args[0])
			}
			s, err := o.seed(cmd)
			if err != nil {
				return err
			}
			if err := disk.SetSeed(f, s); err != nil {
				return fmt.Errorf("customizing %s: %w", args[0], err)
			}
			if err := f.Close(); err != nil {
				return err
			}
			return o.say(cmd.OutOrStdout(), cmd.ErrOrStderr(), args[0], s, medium)
		},
	}
	f := c.Flags()
	f.StringVar(&o.email, "email", "", "e-mail address of the owner, to sign in with")
	f.StringVar(&o.name, "name", "", "the owner's name")
	f.StringVar(&o.password, "password", "", "the owner's password: `file:PATH` or - (asked for when empty)")
	f.StringVar(&o.hostName, "hostname", "", "name of the box, in place of one that it makes itself")
	f.StringVar(&o.network, "network", "", "`FILE` of network settings, as for gatehouse network set")
	f.StringSliceVar(&o.addresses, "address", nil, "a fixed `ADDRESS` with its network's length, as 192.0.2.7/24")
	f.StringSliceVar(&o.gateways, "gateway", nil, "the `ADDRESS` of the way out")
	f.StringSliceVar(&o.resolvers, "resolver", nil, "the `ADDRESS` of a DNS resolver")
	f.StringVar(&o.link, "link", "eth0", "the `CARD` that --address is for")
	f.BoolVar(&o.secureBoot, "secure-boot", false, "enrol the image's keys if the firmware is in set-up mode")
	f.StringVar(&o.serial, "install-to", "", "the `SERIAL` number of the disk that an installer writes to without asking")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	c.MarkFlagsMutuallyExclusive("network", "address")
	return c
}

// seed puts together what the flags say.
func (o customizing) seed(cmd *cobra.Command) (seed.Seed, error) {
	s := seed.Seed{HostName: o.hostName}
	var err error
	if s.Network, err = o.settings(); err != nil {
		return s, err
	}
	if o.secureBoot {
		s.SecureBoot = seed.Enrol
	}
	if o.serial != "" {
		s.Install = &seed.Install{Serial: o.serial}
	}
	if o.email != "" || o.name != "" || o.password != "" {
		// What else is wrong is said before anybody types a password.
		s.Owner = &seed.Owner{Name: o.name, Email: o.email, Password: "$argon2id$"}
	}
	if err := s.Check(); err != nil {
		return s, fail(exitUsage, "the seed: %w", err)
	}
	if s.Owner == nil {
		return s, nil
	}
	s.Owner.Password, err = o.hash(cmd)
	return s, err
}

// hash asks for the password and hashes it as the box does.
func (o customizing) hash(cmd *cobra.Command) (string, error) {
	if err := checkSecretFlag("password", o.password); err != nil {
		return "", err
	}
	var text string
	var err error
	if o.password != "" {
		text, err = readSecret("password", o.password, cmd.InOrStdin())
	} else {
		text, err = askTwice(newAsker(cmd))
	}
	if err != nil {
		return "", err
	}
	if problem := password.Problem(text, o.name, o.email, o.hostName); problem != "" {
		return "", fail(exitUsage, "--password: %s", problem)
	}
	return password.NewHasher().Make(context.WithoutCancel(cmd.Context()), text)
}

func askTwice(a *asker) (string, error) {
	if a.secret == nil {
		return "", fail(exitUsage, "an owner needs --password, since standard input is not a terminal")
	}
	var typed [2]string
	for i, question := range []string{"Password of the owner: ", "Once more: "} {
		fmt.Fprint(a.out, question)
		var err error
		if typed[i], err = a.secret(); err != nil {
			return "", err
		}
	}
	if typed[0] != typed[1] {
		return "", fail(exitUsage, "the two passwords differ: nothing was written")
	}
	return typed[0], nil
}

// settings are those of the network; nil: all links are automatic.
func (o customizing) settings() (*control.NetworkSettings, error) {
	if o.network != "" {
		s, err := readNetwork(o.network)
		return &s, err
	}
	if len(o.addresses)+len(o.gateways)+len(o.resolvers) == 0 {
		return nil, nil
	}
	var s control.NetworkSettings
	link := control.LinkSettings{Name: o.link, Mode: netconf.Static}
	for _, text := range o.addresses {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fail(exitUsage, "--address: %q is not an address with the length of its network, as 192.0.2.7/24", text)
		}
		link.Addresses = append(link.Addresses, p)
	}
	for _, x := range []struct {
		flag  string
		texts []string
		to    *[]netip.Addr
	}{{"gateway", o.gateways, &link.Gateways}, {"resolver", o.resolvers, &s.Resolvers}} {
		for _, text := range x.texts {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fail(exitUsage, "--%s: %q is not an IP address", x.flag, text)
			}
			*x.to = append(*x.to, a)
		}
	}
	if len(o.addresses) > 0 {
		s.Links = append(s.Links, link)
	} else if len(o.gateways) > 0 {
		return nil, fail(exitUsage, "--gateway needs --address: the way out is one of a fixed address")
	}
	return &s, nil
}

func (o customizing) say(stdout, stderr io.Writer, file string, s seed.Seed, medium bool) error {
	owner := ""
	if s.Owner != nil {
		owner = s.Owner.Email
	}
	if o.asJSON {
		return printJSON(stdout, struct {
			Image      string                   `json:"image"`
			Owner      string                   `json:"owner,omitempty"`
			HostName   string                   `json:"host_name,omitempty"`
			Network    *control.NetworkSettings `json:"network,omitempty"`
			SecureBoot string                   `json:"secure_boot,omitempty"`
			InstallTo  string                   `json:"install_to,omitempty"`
		}{file, owner, s.HostName, s.Network, s.SecureBoot, o.serial})
	}
	var words string
	switch {
	case o.serial != "":
		words = "A machine started from " + file + " has its disk with the serial number " + o.serial + " overwritten without asking. "
	case medium:
		words = "A machine started from " + file + " asks at its console which disk to install to. "
	}
	box := "A box started from " + file
	if medium {
		words += "Leave the medium in: "
		box = "the box that starts then"
	}
	if owner != "" {
		words += box + " belongs to " + owner + " from its first start on, without a claim code. Keep the medium as you would keep one."
	} else {
		words += box + " is claimed with the code that it shows."
	}
	if s.SecureBoot != "" {
		words += "\nIf its firmware is in set-up mode, it gets the image's Secure Boot keys, and the box restarts once by itself."
	}
	_, err := fmt.Fprintln(stderr, words)
	return err
}
