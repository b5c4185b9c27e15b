(function () {
  var tip = document.getElementById("tip");
  var told = null;
  function hide() { tip.hidden = true; if (told) { told.el.prepend(told.title); told = null; } }
  function show(el, x, y) {
    if (!told || told.el !== el) {
      hide();
      var title = el.querySelector(":scope > title");
      if (!title) return;
      tip.textContent = title.textContent;
      title.remove(); // or the browser shows it a second time
      told = { el: el, title: title };
    }
    tip.hidden = false;
    var left = Math.min(x + 14, innerWidth - tip.offsetWidth - 8);
    var top = y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18;
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = Math.max(8, top) + "px";
  }
  document.querySelectorAll(".figure svg.drawing").forEach(function (svg) {
    svg.addEventListener("pointermove", function (event) {
      var el = event.target.closest("g");
      while (el && el !== svg && !el.querySelector(":scope > title") && !(told && told.el === el)) el = el.parentElement.closest("g");
      if (el && svg.contains(el)) show(el, event.clientX, event.clientY); else hide();
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("focusin", function (event) {
      var box = event.target.getBoundingClientRect();
      show(event.target, box.left, box.bottom);
    });
    svg.addEventListener("focusout", hide);
  });
})();
