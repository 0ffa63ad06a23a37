package instant

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	_ "image/png" // which newer versions of QEMU may send
	"io"
	"strings"

	"github.com/digitalocean/go-libvirt"
)

// Listen writes what a machine prints on its first serial port to w, until the
// machine ends, ctx does, or somebody else takes the port over. The connection
// serves nothing else meanwhile.
func (h *Hypervisor) Listen(ctx context.Context, uuid string, w io.Writer) error {
	stop := context.AfterFunc(ctx, func() { h.net.Close() })
	defer stop()
	d, err := h.find(uuid)
	if err != nil {
		return err
	}
	err = h.conn.DomainOpenConsole(d, nil, w, uint32(libvirt.DomainConsoleForce))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// agentSeconds is how long a guest agent may take to answer.
const agentSeconds = 5

// Agent has the guest agent of a machine do a command, and decodes what it returns
// into result unless that is nil.
func (h *Hypervisor) Agent(ctx context.Context, uuid, command string, arguments, result any) error {
	message, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
	}{command, arguments})
	if err != nil {
		return err
	}
	var reply libvirt.OptString
	err = h.domain(ctx, uuid, func(d libvirt.Domain) (err error) {
		reply, err = h.conn.QEMUDomainAgentCommand(d, string(message), agentSeconds, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	var r struct {
		Return json.RawMessage `json:"return"`
	}
	if err := json.Unmarshal([]byte(strings.Join(reply, "")), &r); err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(r.Return, result); err != nil {
		return fmt.Errorf("guest agent: %s: %w", command, err)
	}
	return nil
}

// HasAgent reports whether the guest has opened its agent's channel. To ask an agent
// that is not there takes seconds.
func (h *Hypervisor) HasAgent(ctx context.Context, uuid string) (bool, error) {
	var description string
	err := h.domain(ctx, uuid, func(d libvirt.Domain) (err error) {
		description, err = h.conn.DomainGetXMLDesc(d, 0)
		return err
	})
	return strings.Contains(description, "name='org.qemu.guest_agent.0' state='connected'"), err
}

// maxScreen bounds a picture of a screen, in bytes.
const maxScreen = 64 << 20

// Screenshot returns what the screen of a machine shows.
func (h *Hypervisor) Screenshot(ctx context.Context, uuid string) (image.Image, error) {
	var b bytes.Buffer
	err := h.domain(ctx, uuid, func(d libvirt.Domain) error {
		_, err := h.conn.DomainScreenshot(d, &limited{&b, maxScreen}, 0, 0)
		// The library looks for the reply behind the end of the stream, where there is
		// none. Whether the picture is whole shows when it is decoded.
		if err != nil && b.Len() > 0 && strings.Contains(err.Error(), "EOF while decoding") {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("take a picture of the screen: %w", err)
	}
	if bytes.HasPrefix(b.Bytes(), []byte("P6")) {
		return decodePPM(&b)
	}
	m, _, err := image.Decode(&b)
	if err != nil {
		return nil, fmt.Errorf("take a picture of the screen: %w", err)
	}
	return m, nil
}

// limited takes so many bytes.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > l.left {
		return 0, errors.New("it is too large")
	}
	l.left -= len(p)
	return l.w.Write(p)
}

// decodePPM reads a picture in Netpbm's P6 format with one byte for each sample, as
// QEMU writes it.
func decodePPM(r io.Reader) (image.Image, error) {
	in := bufio.NewReader(r)
	var width, height, most int
	if _, err := fmt.Fscanf(in, "P6\n%d %d\n%d\n", &width, &height, &most); err != nil {
		return nil, fmt.Errorf("read picture: %w", err)
	}
	if width < 1 || height < 1 || width > 1<<14 || height > 1<<14 || most != 255 {
		return nil, fmt.Errorf("read picture: %d × %d pixels of %d", width, height, most)
	}
	m := image.NewRGBA(image.Rect(0, 0, width, height))
	row := make([]byte, 3*width)
	for y := range height {
		if _, err := io.ReadFull(in, row); err != nil {
			return nil, fmt.Errorf("read picture: %w", err)
		}
		for x := range width {
			m.SetRGBA(x, y, color.RGBA{row[3*x], row[3*x+1], row[3*x+2], 255})
		}
	}
	return m, nil
}
