//! Starling's doubt: many hearts, a virtual clock and one seed
