package api

import (
	"net/http"

	"github.com/sendense/sendense/appliance"
)

// KeyringHeader is the header in which a request names a keyring: URLs are logged.
const KeyringHeader = "Sendense-Keyring"

// KeyringRequest gives passphrases. They are kept in memory for as long as the
// request is open, and tried on encrypted volumes by requests that name the keyring.
type KeyringRequest struct {
	Passphrases [][]byte `json:"passphrases"`
}

// Keyring begins the answer, which does not end before the client ends it.
type Keyring struct {
	ID string `json:"id"`
}

func (s *server) keyring(w http.ResponseWriter, r *http.Request) error {
	var req KeyringRequest
	if err := decode(r, &req); err != nil {
		// What cannot be read may be a passphrase, and is not told.
		return &appliance.Error{Code: appliance.CodeInvalid, Msg: "The body of the request cannot be read.",
			Hint: "Send a KeyringRequest as docs/openapi.json describes it, with passphrases in base64."}
	}
	id, done, remove, err := s.a.AddKeyring(req.Passphrases)
	if err != nil {
		return err
	}
	defer remove()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusCreated)
	send(w, Keyring{id})
	if http.NewResponseController(w).Flush() != nil {
		return nil
	}
	select {
	case <-r.Context().Done():
	case <-done:
	}
	return nil
}
