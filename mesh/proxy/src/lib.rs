//! Starling's data plane: it carries requests by what the view says
