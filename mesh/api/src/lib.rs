//! Starling's control surface: HTTP on loopback, any peer answers any question
