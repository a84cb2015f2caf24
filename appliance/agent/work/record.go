package work

import (
	"fmt"

	"gatehouse/appliance/account/right"
	"gatehouse/appliance/agent/spool"
	"gatehouse/appliance/control"
	"gatehouse/appliance/recording"
	"gatehouse/appliance/session"
	"gatehouse/appliance/session/wire"
)

func (s *Session) forced() bool { return s.cfg.Grant.Recording == session.RecordingForced }

// recorded says whether what is shown in this session is recorded.
func (s *Session) recorded() bool {
	return s.forced() || s.cfg.Grant.Recording == session.RecordingAllowed && s.cfg.Grant.Functions.Has(right.Record)
}

// record gives what a function that shows something is recorded with, nil if it
// is not; done is for its end. A session has one recording, and a recording one
// screen: a second at the same time would be mixed into it.
func (s *Session) record(width, height int, title string) (r *spool.Recorder, done func(), err error) {
	if !s.recorded() {
		return nil, func() {}, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return nil, nil, wire.Refuse(wire.Failed, "the session has ended")
	}
	if s.busy {
		return nil, nil, wire.Refuse(wire.Forced, "this session is recorded, and its recording holds one screen at a time: close the one that is open, or ask for another session")
	}
	if s.recorder == nil {
		if s.recorder, err = s.startRecording(width, height); err != nil {
			s.cfg.Log.Error("a recording cannot be made", "session", s.cfg.Grant.ID, "err", err)
			return nil, nil, wire.Refuse(wire.Forced, "this session has to be recorded, and that cannot be done: %v", err)
		}
	} else {
		// A new screen begins empty, as it does for the technician.
		if err = s.recorder.Resize(width, height); err == nil {
			err = s.recorder.Output([]byte("\x1bc"))
		}
	}
	if err == nil {
		err = s.recorder.Mark(title)
	}
	if err != nil {
		return nil, nil, wire.Refuse(wire.Forced, "this session has to be recorded: %v", err)
	}
	s.busy = true
	return s.recorder, func() {
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
	}, nil
}

func (s *Session) startRecording(width, height int) (*spool.Recorder, error) {
	g := s.cfg.Grant
	return spool.Start(spool.Config{
		Folder: s.cfg.Spool, Leave: s.cfg.Leave, Session: g.ID, To: g.RecordTo, Tell: s.cfg.Tell,
		Header: recording.Header{
			Session: g.ID.String(), Site: g.Site, Who: g.Technician, Target: g.Target.Name, Title: fmt.Sprintf("%s on %s", g.Technician, g.Target.Name),
			Width: width, Height: height, Started: s.cfg.Now().UTC(),
		},
		Failed: s.recordingFailed,
	})
}

// recordingFailed ends a session that has to be recorded, and one whose
// technician wanted it recorded goes on without, which the log says.
func (s *Session) recordingFailed(err error) {
	s.cfg.Log.Error("a recording broke", "session", s.cfg.Grant.ID, "err", err)
	s.note(control.Event{Action: "record session", Outcome: "failed", Detail: map[string]string{"error": err.Error()}})
	if s.forced() {
		s.End(err.Error())
	}
}
