package main

import (
	"encoding/json"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sendense/sendense/internal/cli"
	"github.com/sendense/sendense/internal/host"
)

// passphrases are those that a command was given for encrypted volumes.
type passphrases struct {
	files  []string // "-": standard input
	passed bool     // they come from the process that runs this one in the background
}

// flags adds the flags of a command that takes passphrases.
func (p *passphrases) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVar(&p.files, "passphrase-file", nil, "unlock encrypted volumes with the passphrase in this `file`; - for standard input; may be repeated")
	f.BoolVar(&p.passed, passedFlag, false, "")
	_ = f.MarkHidden(passedFlag) // it was just added
}

// passedFlag says that passphrases come as JSON on standard input.
const passedFlag = "passphrases-passed"

// read reads the passphrases.
func (p *passphrases) read(c *cobra.Command) ([][]byte, error) {
	var list [][]byte
	if p.passed {
		err := json.NewDecoder(c.InOrStdin()).Decode(&list)
		return list, err
	}
	if i := slices.Index(p.files, "-"); i >= 0 && slices.Contains(p.files[i+1:], "-") {
		return nil, cli.Usagef("Give the others in files.", "Standard input can be read only once.")
	}
	total := 0
	for _, name := range p.files {
		secret, err := cli.ReadSecret(c, name, "Passphrase of the encrypted volume: ")
		if err != nil {
			return nil, err
		}
		if total += len(secret); total > maxPassphrases {
			return nil, cli.Usagef("Give fewer.", "The passphrases are too long together.")
		}
		list = append(list, secret)
	}
	return list, nil
}

// maxPassphrases is how long all of them may be, in bytes: a request has to hold them.
const maxPassphrases = 9 << 20

// unlocking is with for a command that takes passphrases: fn gets the ID of a
// keyring, "" if none was given.
func (s service) unlocking(c *cobra.Command, p *passphrases, fn func(conn *host.Connection, keyring string) error) error {
	list, err := p.read(c)
	if err != nil {
		return err
	}
	return s.with(c, false, func(conn *host.Connection) error { return withKeyring(c, conn, list, fn) })
}

// withKeyring has the appliance keep passphrases for as long as fn runs.
func withKeyring(c *cobra.Command, conn *host.Connection, list [][]byte, fn func(*host.Connection, string) error) error {
	if len(list) == 0 {
		return fn(conn, "")
	}
	k, err := conn.AddKeyring(c.Context(), list)
	if err != nil {
		return err
	}
	defer k.Close()
	return fn(conn, k.ID)
}
