'use strict';
(() => {
  const data = JSON.parse(document.getElementById('page-data').textContent);
  const byId = id => document.getElementById(id);

  // Colours of the page, so that charts follow a dark mode.
  const ink = {labelColor: 'currentColor', titleColor: 'currentColor'};
  const config = {
    background: null,
    axis: {...ink, domainColor: 'currentColor', tickColor: 'currentColor', gridColor: 'currentColor', gridOpacity: 0.15},
    legend: {...ink, layout: {bottom: {anchor: 'start', direction: 'vertical', margin: 6}}},
    view: {stroke: 'currentColor', strokeOpacity: 0.2},
  };
  for (const place of document.querySelectorAll('[data-chart]')) {
    const {spec, rows} = data.charts[place.dataset.chart];
    vegaEmbed(place, {...spec, datasets: {rows}}, {renderer: 'svg', actions: false, config})
      .catch(error => { place.textContent = `The chart cannot be drawn: ${error}`; console.error(error); });
  }

  if (data.images.length) {
    const choose = byId('view-image'), sides = [byId('view-left'), byId('view-right')];
    const panes = [byId('view-base'), byId('view-top')], slider = byId('view-slider');
    const options = (select, names) => {
      const before = select.value;
      select.replaceChildren(...names.map(name => new Option(name, name)));
      if (names.includes(before)) select.value = before;
    };
    // What is transparent lies on the image.
    const fill = (pane, layers, name) => {
      pane.firstElementChild.src = layers[name];
      pane.firstElementChild.alt = name;
      pane.style.backgroundImage = `url(${layers.image})`;
    };
    const present = () => data.images[choose.selectedIndex].layers;
    const show = () => {
      const layers = present(), names = Object.keys(layers);
      panes.forEach((pane, i) => fill(pane, layers, sides[i].value));
      panes[1].style.clipPath = `inset(0 0 0 ${slider.value}%)`;
      byId('view-strip').replaceChildren(...names.map(name => {
        const button = document.createElement('button'), pane = document.createElement('div');
        button.type = 'button';
        button.setAttribute('aria-pressed', String(name === sides[1].value));
        pane.className = 'pane';
        pane.append(new Image());
        fill(pane, layers, name);
        button.append(pane, name);
        button.onclick = () => {
          sides[1].value = name;
          show();
          byId('view-strip').children[names.indexOf(name)].focus();
        };
        return button;
      }));
    };
    const turn = by => {
      choose.selectedIndex = (choose.selectedIndex + by + data.images.length) % data.images.length;
      open();
    };
    const open = () => {
      sides.forEach(select => options(select, Object.keys(present())));
      show();
    };
    choose.replaceChildren(...data.images.map(image => new Option(image.name)));
    open();
    const first = Object.keys(present());
    sides[0].value = first[1];
    sides[1].value = first[2] || first[1];
    show();
    choose.onchange = open;
    sides.forEach(select => { select.onchange = show; });
    slider.oninput = () => { panes[1].style.clipPath = `inset(0 0 0 ${slider.value}%)`; };
    byId('view-before').onclick = () => turn(-1);
    byId('view-after').onclick = () => turn(1);
    byId('view').addEventListener('keydown', event => {
      if (event.target.tagName === 'SELECT' || event.ctrlKey || event.altKey || event.metaKey) return;
      if (event.key === 'n') turn(1);
      if (event.key === 'p') turn(-1);
    });
  }

  // Served pages ask for a newer one; nobody's choices in the viewer are lost.
  if (location.protocol === 'http:') {
    let tag = null;
    setInterval(async () => {
      try {
        const found = (await fetch('/', {method: 'HEAD'})).headers.get('ETag');
        if (tag && found !== tag) byId('newer').hidden = false;
        tag = tag || found;
      } catch { /* the server has gone */ }
    }, 5000);
  }
})();
